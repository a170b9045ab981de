"""All runs at a glance, a row each: which of them needs somebody?"""

from __future__ import annotations

from monitoring.grafana import parts
from monitoring.grafana.parts import Board, Column, Panel, above, below, line, rows_of, value

OPEN_RUN = "/d/dcdist-run?${datasource:queryparam}&var-run=${__value.raw}&${__url_time_range}"


def board() -> Board:
    return Board(
        uid="dcdist-fleet",
        about="All runs, a row each: which of them needs somebody? A click on a run opens it.",
        variables=("run",),
        rows={"Now": summary(), "Runs": [runs()], "Over time": over_time(), "Alerts": [alerts()]},
    )


def summary() -> list[Panel]:
    return [
        value(
            "Running",
            "Runs that answer and are not done.",
            f"count(({parts.STATE}) == 0) or vector(0)",
            parts.COUNT,
            legend="runs",
            width=4,
        ),
        value(
            "Not seen",
            "Runs of this time range that no longer answer and did not say that they were done: waiting in a queue, "
            "starting again, or dead.",
            f"count(({parts.STATE}) == 2) or vector(0)",
            parts.COUNT,
            below(1),
            legend="runs",
            width=4,
        ),
        value(
            "Finished",
            "Runs of this time range that are done or were stopped on request.",
            f"count((({parts.STATE}) == 1) or (({parts.STATE}) == 3)) or vector(0)",
            parts.COUNT,
            legend="runs",
            width=4,
        ),
        value(
            "Images per second",
            "Of all runs together, while they train.",
            f"sum({parts.IMAGES}) or vector(0)",
            parts.IMAGES_PER_SECOND,
            legend="all runs",
            width=4,
        ),
        value(
            "Training processes",
            "Of all runs together: one for each GPU, or as many as were asked for on CPUs.",
            "sum(max by (run, node) (dcdist_processes{run})) or vector(0)",
            parts.COUNT,
            legend="processes",
            width=4,
        ),
        value(
            "Firing alerts",
            "Of the runs shown; the table at the end says which.",
            'count(ALERTS{alertname=~"Dcdist.*", run, alertstate="firing"}) or vector(0)',
            parts.COUNT,
            below(1),
            legend="alerts",
            width=4,
        ),
    ]


def runs() -> Panel:
    return rows_of(
        "Runs",
        """Red cells first. Progress and the time that remains are of the stage that a run is in, at the pace of the
        last hour. Data wait is that of the slowest node; the entropy ratio that of the worst head. A run that is not
        seen has no other values; one that is finished has neither a last progress nor a last commit.""",
        {"run": "Run", "stage": "Stage", "phase": "Phase"},
        [
            Column("State", parts.STATE, parts.RATIO, states=parts.STATES),
            Column(
                "Progress",
                "max by (run) (dcdist_progress_steps{run}) / max by (run) (dcdist_target_steps{run})",
                parts.SHARE,
                bar=True,
            ),
            Column("Images/s", parts.IMAGES, parts.COUNT),
            Column(
                "Remaining",
                """(max by (run) (dcdist_target_steps{run}) - max by (run) (dcdist_progress_steps{run}))
                / (deriv(max by (run) (dcdist_progress_steps{run})[1h:1m]) > 0)""",
                parts.DURATION,
            ),
            Column("Data wait", parts.DATA_WAIT, parts.SHARE, below(0.2)),
            Column("Last progress", parts.SILENT, parts.SECONDS, below(900)),
            Column("Last commit", parts.COMMIT_AGE, parts.SECONDS),
            Column("In intervals", parts.COMMIT_INTERVALS, parts.RATIO, below(2)),
            Column("Entropy ratio", "min by (run) (dcdist_cluster_size_entropy_ratio{run})", parts.RATIO, above(0.8)),
            Column("Restarts", "max by (run) (dcdist_restarts{run})", parts.COUNT),
            Column(
                "Restarts in 30 min",
                """max by (run) (dcdist_restarts{run})
                - min by (run) (min_over_time(dcdist_restarts{run}[30m]))""",
                parts.COUNT,
                below(3),
            ),
            Column("Alerts", parts.ALERTS, parts.COUNT, below(1)),
        ],
        info=["max by (run, stage, phase) (dcdist_phase_info{run})"],
        link=OPEN_RUN,
    )


def over_time() -> list[Panel]:
    return [
        line(
            "Images per second",
            "A run that trains has a steady line, with gaps for the clustering of each epoch; a slow decay is a slow "
            "disk, a node or a neighbour.",
            [(parts.IMAGES, "{{run}}")],
            parts.IMAGES_PER_SECOND,
            minimum=0,
            width=12,
        ),
        line(
            "Progress of the stage",
            "Rises to 1 and starts again with the next stage. Flat: a clustering, or nothing is done. A step back is a "
            "restart after a kill.",
            [("max by (run) (dcdist_progress_steps{run}) / max by (run) (dcdist_target_steps{run})", "{{run}}")],
            parts.SHARE,
            minimum=0,
            maximum=1,
            width=12,
        ),
        line(
            "Data wait",
            "Share of the steps' time that the slowest node waits for images. Above the line the loaders are what "
            "limits the run.",
            [(parts.DATA_WAIT, "{{run}}")],
            parts.SHARE,
            below(0.2),
            minimum=0,
            width=12,
        ),
        line(
            "Entropy ratio of the cluster sizes",
            "Of the worst head. Below the line a few clusters hold most of the images: the run may be collapsing.",
            [("min by (run) (dcdist_cluster_size_entropy_ratio{run})", "{{run}}")],
            parts.RATIO,
            above(0.8),
            maximum=1,
            width=12,
        ),
    ]


def alerts() -> Panel:
    return rows_of(
        "Firing alerts",
        "What Prometheus reports of the runs shown. Empty is well.",
        {"run": "Run", "alertname": "Alert", "severity": "Severity"},
        [],
        info=['max by (run, alertname, severity) (ALERTS{alertname=~"Dcdist.*", run, alertstate="firing"})'],
        height=8,
        link=OPEN_RUN,
    )

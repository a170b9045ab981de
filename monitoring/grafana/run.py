"""One run, or a few side by side: how far, how fast, what it learns, what its restarts cost."""

from __future__ import annotations

from monitoring.grafana import parts
from monitoring.grafana.parts import Board, Column, Panel, above, below, line, rows_of, timeline, value


def board() -> Board:
    return Board(
        uid="dcdist-run",
        about="One run, or a few side by side: how far, how fast, what it learns, what its restarts cost.",
        variables=("run", "stage"),
        rows={
            "Now": now(),
            "Progress": progress(),
            "Learning": learning(),
            "Time": time(),
            "Checkpoints and restarts": checkpoints(),
            "Attempts": [attempts()],
        },
    )


def now() -> list[Panel]:
    return [
        value(
            "State",
            "Not seen: it no longer answers and did not say that it was done.",
            parts.STATE,
            parts.RATIO,
            states=parts.STATES,
        ),
        value(
            "Progress",
            "Steps of the stage that are done, through all restarts.",
            parts.PROGRESS,
            parts.SHARE,
            legend="{{run}} {{stage}}",
        ),
        value(
            "Remaining",
            "Of the stage, at the pace of the last hour with its clusterings and restarts.",
            parts.REMAINING,
            parts.DURATION,
            legend="{{run}} {{stage}}",
        ),
        value("Images per second", "While it trains.", parts.IMAGES, parts.IMAGES_PER_SECOND),
        value(
            "Data wait",
            "Share of the steps' time that the slowest node waits for images: under 20 %.",
            parts.DATA_WAIT,
            parts.SHARE,
            below(0.2),
        ),
        value(
            "Last progress",
            "Since the last step, batch of features or iteration of a clustering: under 15 minutes.",
            parts.SILENT,
            parts.SECONDS,
            below(900),
        ),
        value(
            "Last commit",
            "Age of the newest checkpoint in intervals of checkpoints: under 2.",
            parts.COMMIT_INTERVALS,
            parts.RATIO,
            below(2),
        ),
        value(
            "Entropy ratio",
            "Of the sizes of the worst head's clusters: above 0.8.",
            "min by (run) (dcdist_cluster_size_entropy_ratio{run, stage})",
            parts.RATIO,
            above(0.8),
        ),
    ]


def progress() -> list[Panel]:
    return [
        line(
            "Progress",
            "Rises to 1, stage by stage. Flat: a clustering, or nothing is done. A step back is a restart after a "
            "kill.",
            [(parts.PROGRESS, "{{run}} {{stage}}"), (parts.STAGES, "{{run}} stages done")],
            parts.SHARE,
            minimum=0,
            maximum=1,
        ),
        line(
            "Epochs",
            "Epochs of the stage that are done, and those that it will have.",
            [
                ("max by (run, stage) (dcdist_progress_epochs{run, stage})", "{{run}} {{stage}} done"),
                ("max by (run, stage) (dcdist_target_epochs{run, stage})", "{{run}} {{stage}} target"),
            ],
            parts.COUNT,
            minimum=0,
        ),
        line(
            "Remaining",
            "Falls by an hour in an hour. Rising: the run became slower or stands still.",
            [(parts.REMAINING, "{{run}} {{stage}}")],
            parts.DURATION,
            minimum=0,
        ),
        line(
            "Images per second",
            "Wall: trained images a second, 0 while the run clusters. Training: over the time of steps alone, steady "
            "unless the machine or the loaders change.",
            [
                ("sum by (run) (rate(dcdist_samples_total{run, stage}[$__rate_interval]))", "{{run}} wall"),
                (
                    """sum by (run) (rate(dcdist_samples_total{run, stage}[$__rate_interval]))
                    / (sum by (run) (rate(dcdist_step_duration_seconds_sum{run, stage}[$__rate_interval])) > 0)""",
                    "{{run}} training",
                ),
            ],
            parts.IMAGES_PER_SECOND,
            minimum=0,
            width=12,
        ),
        timeline(
            "Phases",
            "The phase that the run is in. A phase that does not end, with no progress, is a run that hangs.",
            "max by (run, phase) (dcdist_phase_info{run, stage})",
            "{{run}} {{phase}}",
        ),
    ]


def learning() -> list[Panel]:
    return [
        line(
            "Losses",
            "Finite, falling between clusterings; a jump after each clustering is normal, as labels are new. Total is"
            " the sum; heldout is of images kept out.",
            [("max by (run, loss) (dcdist_loss{run, stage})", "{{run}} {{loss}}")],
            parts.RATIO,
        ),
        line(
            "Learning rate",
            "The schedule that the config asks for, without a jump at a restart.",
            [("max by (run) (dcdist_learning_rate{run, stage})", "{{run}}")],
            parts.RATIO,
            minimum=0,
        ),
        line(
            "Gradient norm",
            "Finite and without jumps. Growing by orders of magnitude comes before a loss that is not finite; near 0 "
            "the network no longer learns.",
            [("max by (run) (dcdist_gradient_norm{run, stage})", "{{run}}")],
            parts.RATIO,
            logarithmic=True,
        ),
        line(
            "Figures of the method",
            "What else the method reports; docs/methods.md says what each should be.",
            [("max by (run, figure) (dcdist_figure{run, stage})", "{{run}} {{figure}}")],
            parts.RATIO,
            width=16,
        ),
        value(
            "Steps that were not finite",
            "In the time range; such a loss ends the run. 0.",
            "sum by (run) (increase(dcdist_nonfinite_steps_total{run, stage}[$__range]))",
            parts.COUNT,
            below(1),
            width=4,
        ),
        value(
            "Warnings of a collapse",
            "In the time range, by the run itself. 0; look at the clusters otherwise.",
            "sum by (run) (increase(dcdist_collapse_warnings_total{run, stage}[$__range]))",
            parts.COUNT,
            below(1),
            width=4,
        ),
    ]


def time() -> list[Panel]:
    buckets = "sum by (run, le) (rate(dcdist_step_duration_seconds_bucket{run, stage}[$__rate_interval]))"
    return [
        line(
            "Duration of a step",
            "Quantiles that lie close together. A high 99 % is now and then a slow batch or a slow node; all of them "
            "rising is the machine.",
            [(f"histogram_quantile({q / 100}, {buckets})", f"{{{{run}}}} {q} %") for q in (50, 90, 99)],
            parts.SECONDS,
            minimum=0,
        ),
        line(
            "Data wait",
            "Share of the steps' time that the slowest node waits for images. Above the line: more loader processes, "
            "or packed images.",
            [(parts.DATA_WAIT, "{{run}}")],
            parts.SHARE,
            below(0.2),
            minimum=0,
        ),
        line(
            "Duration of the phases",
            "The newest of each phase of an epoch: what an epoch is made of, and what grew.",
            [("max by (run, phase) (dcdist_phase_duration_seconds{run, stage})", "{{run}} {{phase}}")],
            parts.SECONDS,
            minimum=0,
            stacked=True,
        ),
    ]


def checkpoints() -> list[Panel]:
    return [
        line(
            "Age of the newest checkpoint",
            "A saw between 0 and the interval. Above 2 intervals checkpoints fail or the run hangs; a kill then "
            "repeats all steps since.",
            [
                (parts.COMMIT_AGE, "{{run}} age"),
                ("max by (run) (dcdist_checkpoint_interval_seconds{run})", "{{run}} interval"),
            ],
            parts.SECONDS,
            minimum=0,
        ),
        line(
            "Time for a checkpoint, of the interval",
            "Under 1 %; more is a slow storage, or an interval that is too short.",
            [
                (
                    """max by (run) (dcdist_checkpoint_duration_seconds{run})
                    / max by (run) (dcdist_checkpoint_interval_seconds{run})""",
                    "{{run}}",
                )
            ],
            parts.SHARE,
            below(0.01),
            minimum=0,
        ),
        line(
            "Checkpoints in an hour",
            "As many as the interval asks for, and one at each preemption.",
            [("sum by (run) (increase(dcdist_checkpoints_total{run}[1h]))", "{{run}}")],
            parts.COUNT,
            minimum=0,
        ),
        line(
            "Restarts and preemptions",
            "Starts after the first, and why attempts ended. Preemptions cost nothing; killed and failed are to be "
            "looked into.",
            [
                ("max by (run) (dcdist_restarts{run})", "{{run}} restarts"),
                ("max by (run, reason) (dcdist_preemptions{run})", "{{run}} {{reason}}"),
            ],
            parts.COUNT,
            minimum=0,
        ),
        line(
            "Repeated steps",
            "Steps that restarts did again, in all. It rises after kills, by the steps since the last commit, never "
            "after a preemption that the run was told of.",
            [("max by (run) (dcdist_repeated_steps{run})", "{{run}}")],
            parts.COUNT,
            minimum=0,
        ),
        line(
            "From the start to the first step",
            "What every restart costs before it trains. Minutes are a slow image of a container, a cold file system or "
            "slow compilation.",
            [("max by (run) (dcdist_start_to_first_step_seconds{run})", "{{run}}")],
            parts.SECONDS,
            minimum=0,
        ),
    ]


def attempts() -> Panel:
    return rows_of(
        "What runs",
        "The version and who started this attempt, with the name of the job there: where to look for its log.",
        {"run": "Run", "version": "Version", "launcher": "Launcher", "job_name": "Job"},
        [
            Column("Restarts", "max by (run) (dcdist_restarts{run})", parts.COUNT),
        ],
        info=[
            "max by (run, version) (dcdist_build_info{run})",
            # As `job` is also a label of the target, Prometheus renames the metric's own.
            "max by (run, launcher, job_name) (dcdist_job_info{run})",
        ],
        height=6,
    )

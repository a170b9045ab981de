"""What the runs use: time of steps and phases, waiting for data, memory, processes, targets."""

from __future__ import annotations

from monitoring.grafana import parts
from monitoring.grafana.parts import Board, Panel, below, heat, line, value

NODE = "{{run}} {{node}}"


def board() -> Board:
    return Board(
        uid="dcdist-resources",
        about="What the runs use: time of steps and phases, waiting for data, memory, processes, targets.",
        variables=("job", "run", "stage"),
        rows={"Now": now(), "Time": time(), "Memory": memory(), "Processes and targets": processes()},
    )


def of_node(metric: str) -> str:
    return f"max by (run, node) ({metric}{{run}})"


def now() -> list[Panel]:
    return [
        value(
            "Targets down",
            "Endpoints that Prometheus knows and that do not answer, or on whose port another run does, of the jobs "
            "chosen. 0; for a few minutes one for each run that ended or starts again.",
            "count(max by (namespace, instance) (up{job}) unless on (namespace, instance) dcdist_build_info) "
            "or vector(0)",
            parts.COUNT,
            below(1),
            legend="targets",
            width=4,
        ),
        value(
            "Processes",
            "Training processes of the runs chosen.",
            f"sum by (run) ({of_node('dcdist_processes')})",
            parts.COUNT,
            width=4,
        ),
        value(
            "Nodes",
            "On which they are.",
            f"count by (run) ({of_node('dcdist_processes')})",
            parts.COUNT,
            width=4,
        ),
        value(
            "Data wait",
            "Share of the steps' time that the slowest node waits for images: under 20 %.",
            parts.DATA_WAIT,
            parts.SHARE,
            below(0.2),
            width=4,
        ),
        value(
            "Memory",
            "Of all nodes, processes that load images included; pages that they share count once.",
            f"sum by (run) ({of_node('dcdist_memory_bytes')})",
            parts.BYTES,
            width=4,
        ),
        value(
            "GPU memory",
            "That torch holds, of all nodes.",
            f"sum by (run) ({of_node('dcdist_gpu_memory_bytes')})",
            parts.BYTES,
            width=4,
        ),
    ]


def time() -> list[Panel]:
    wait = f"rate(dcdist_data_wait_seconds_total{{run, stage}}[{parts.WAIT_INTERVAL}])"
    duration = "dcdist_step_duration_seconds"
    phases = "max by (run, phase) (dcdist_phase_duration_seconds{run, stage})"
    return [
        line(
            "Data wait by node",
            "Share of the steps' time. All nodes above the line: more loader processes or packed images. One node: its "
            "disk or its cores.",
            [
                (
                    f"""sum by (run, node) ({wait}) / on (run) group_left ()
                    (sum by (run) (rate({duration}_sum{{run, stage}}[{parts.WAIT_INTERVAL}])) > 0)""",
                    NODE,
                )
            ],
            parts.SHARE,
            below(0.2),
            minimum=0,
        ),
        line(
            "Images per second and process",
            "Over the time of steps alone. Falling with more processes: what they share (network, disk, cores) limits.",
            [
                (
                    f"""sum by (run) (rate(dcdist_samples_total{{run, stage}}[$__rate_interval]))
                    / (sum by (run) (rate({duration}_sum{{run, stage}}[$__rate_interval])) > 0)
                    / sum by (run) ({of_node("dcdist_processes")})""",
                    "{{run}}",
                )
            ],
            parts.IMAGES_PER_SECOND,
            minimum=0,
        ),
        line(
            "Phases' share of an epoch",
            "Of the newest of each phase. Features and cluster growing against train: cluster less often, or on more "
            "processes.",
            [
                (
                    f"{phases} / on (run) group_left () sum by (run) ({phases})",
                    "{{run}} {{phase}}",
                )
            ],
            parts.SHARE,
            minimum=0,
            stacked=True,
        ),
        heat(
            "Duration of a step",
            "Steps a second by their duration: one narrow band. A second band above is a slow node, or batches that "
            "wait for data.",
            f"sum by (le) (rate({duration}_bucket{{run, stage}}[$__rate_interval]))",
            parts.SECONDS,
            "ops",
            width=12,
        ),
        line(
            "Mean duration of a step",
            "With the part of it that waits for images, mean over the nodes.",
            [
                (
                    f"""sum by (run) (rate({duration}_sum{{run, stage}}[$__rate_interval]))
                    / (sum by (run) (rate({duration}_count{{run, stage}}[$__rate_interval])) > 0)""",
                    "{{run}} step",
                ),
                (
                    f"""avg by (run) (sum by (run, node) ({wait}))
                    / (sum by (run) (rate({duration}_count{{run, stage}}[{parts.WAIT_INTERVAL}])) > 0)""",
                    "{{run}} data wait",
                ),
            ],
            parts.SECONDS,
            minimum=0,
            width=12,
            height=10,
        ),
    ]


def memory() -> list[Panel]:
    return [
        line(
            "Memory by node",
            "Memory of the node's processes, those that load images included. It is level after the first epoch; "
            "steady growth ends in a kill by the system. Pages that processes share count once in all.",
            [(of_node("dcdist_memory_bytes"), NODE)],
            parts.BYTES,
            minimum=0,
            width=12,
        ),
        line(
            "GPU memory by node",
            "What torch holds on the node's GPUs, at its highest since the last record; the clustering is often the "
            "highest. Empty without GPUs.",
            [(of_node("dcdist_gpu_memory_bytes"), NODE)],
            parts.BYTES,
            minimum=0,
            width=12,
        ),
    ]


def processes() -> list[Panel]:
    return [
        line(
            "Training processes by node",
            "As many as were asked for. Fewer after a restart: the run goes on with the nodes that are left.",
            [(of_node("dcdist_processes"), NODE)],
            parts.COUNT,
            minimum=0,
            stacked=True,
            width=12,
        ),
        line(
            "Targets",
            "Endpoints that Prometheus reads and those that it knows, by its job; the lines are one but while runs "
            "end and start.",
            [
                ("sum by (job) (up{job})", "{{job}} up"),
                ("count by (job) (up{job})", "{{job}} known"),
            ],
            parts.COUNT,
            minimum=0,
            width=12,
        ),
    ]

"""The command line: parses, calls, prints. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from dcdist.cli_assign import assign
from dcdist.cli_evaluate import evaluate_app
from dcdist.cli_export import export
from dcdist.cli_report import report
from dcdist.cli_retrieval import retrieval
from dcdist.cli_submit import ConfigFile, Overrides, submit_app
from dcdist.cli_voc import voc_classification, voc_detection, voc_segmentation
from dcdist.errors import DcdistError, ExitCode, UsageError

app = typer.Typer(
    help="Deep clustering of images: learns features without labels, survives preemption exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make, pack and inspect data.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(submit_app, name="submit")
app.add_typer(evaluate_app, name="evaluate")
evaluate_app.command("voc-classification")(voc_classification)
evaluate_app.command("voc-detection")(voc_detection)
evaluate_app.command("voc-segmentation")(voc_segmentation)
evaluate_app.command("retrieval")(retrieval)

Destination = Annotated[str, typer.Argument(help="folder or URL to write packed shards to")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace shards that are there already")]
Run = Annotated[str, typer.Argument(help="run directory (run.dir)")]


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="print the config and what the run will need; start nothing")
    ] = False,
) -> None:
    """Run an experiment; the same command resumes it.

    Where the environment describes a process group (torchrun, srun), this process joins it.
    """
    from dcdist.config.load import load_config
    from dcdist.distributed.place import describes_process_group
    from dcdist.engine.preemption import SignalFlag
    from dcdist.launch.base import with_absolute_paths
    from dcdist.launch.local import LocalLauncher, local_job

    # Absolute, for whoever reads the run later, from another folder.
    experiment = with_absolute_paths(load_config(config, overrides or ()))
    # A job of a Ray that srun has started finds srun's variables too.
    joins = describes_process_group() and ("RANK" in os.environ or "RAY_ADDRESS" not in os.environ)
    job = local_job(experiment.launch, ("train", str(config), *(overrides or ())))
    if plan:
        from dcdist.plan import describe_plan

        typer.echo(describe_plan(experiment, job.num_processes * job.num_nodes))
    elif experiment.launch.backend == "ray" and not joins:
        from dcdist.launch.ray import run_on_ray

        raise typer.Exit(run_on_ray(experiment))
    elif joins or job.num_processes * job.num_nodes == 1:
        signals = SignalFlag().install()  # before the seconds that the imports take
        # DDP warns at each start that find_unused_parameters is set; it is, on purpose (engine/training_step.py).
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from dcdist.worker import work

        raise typer.Exit(work(experiment, signals))
    else:
        raise typer.Exit(LocalLauncher().submit(job).wait())


@app.command()
def status(
    run: Run,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object, for programs; with --watch one a line at each look")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="look again and again until the run has ended; Ctrl-C leaves, the run goes on"),
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(min=0.1, help="seconds between two looks of --watch, by default 2, behind a URL 30"),
    ] = None,
) -> None:
    """Say how a run stands, from its folder alone: state, position, rate, time left, last checkpoint, restarts.

    With --watch also losses, balance of the clusters and events, drawn anew until the run is done, stopped or failed; a
    run that has not begun or was preempted is waited for. In a pipe: a line for each event and epoch.
    """
    if watch:
        from dcdist.status.watch import watch_run

        watch_run(run, as_json, every)
        return
    import json

    from dcdist.status import read_status

    found = read_status(run)
    typer.echo(json.dumps(found.to_json()) if as_json else "\n".join(found.lines()))


@app.command()
def stop(run: Run) -> None:
    """Ask a run to save and end (exit code 3); a later start runs on."""
    from dcdist.run_directory import RunDirectory

    number = RunDirectory(run).request_stop()
    typer.echo(f"attempt {number} of {run} will save and stop at its next step")


@app.command(hidden=True)
def verdict(
    config: ConfigFile,
    overrides: Overrides = None,
    exit_code: Annotated[int, typer.Option(help="what the job's processes ended with")] = int(ExitCode.RUN_AGAIN),
) -> None:
    """For batch scripts, after a run's processes: print 75 where it is to start again, else its end."""
    from dcdist.config.load import load_config
    from dcdist.run_directory import RunDirectory
    from dcdist.verdict import Verdict, judge_job

    run_directory = RunDirectory(load_config(config, overrides or ()).run.dir)
    try:
        found = judge_job(run_directory, exit_code)
    except DcdistError as error:
        found = Verdict(error.exit_code, str(error))
    if found.code is not ExitCode.RUN_AGAIN:
        typer.echo(f"dcdist: not started again: {found.reason}", err=True)
    typer.echo(int(found.code))


@app.command()
def doctor(
    run_dir: Annotated[str | None, typer.Option(help="run directory to try out (run.dir)")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Check what breaks runs on a cluster; usable inside a job, as in `srun dcdist doctor`."""
    from dcdist.doctor import examine

    raise typer.Exit(examine(run_dir, device))


@app.command()
def checkpoints(run: Run) -> None:
    """List a run's checkpoints and whether each is whole."""
    from dcdist.run_directory import RunDirectory

    for checkpoint in RunDirectory(run).inventory():
        typer.echo(checkpoint.line())


@data_app.command("make-digits")
def make_digits(destination: Destination, overwrite: Overwrite = False) -> None:
    """Write the embedded sample: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""
    from dcdist.data.digits import make_digits as write_digits

    typer.echo(write_digits(destination, overwrite=overwrite).line())


@data_app.command("pack")
def pack(
    source: Annotated[str, typer.Argument(help="image folder, Parquet, tar or packed shards; local or any fsspec URL")],
    destination: Destination,
    overwrite: Overwrite = False,
) -> None:
    """Pack images into Arrow shards, which training reads through a memory map."""
    from dcdist.data.pack import pack as write_shards

    typer.echo(write_shards(source, destination, overwrite=overwrite).line())


@data_app.command("info")
def info(root: Annotated[str, typer.Argument(help="anything that data.root takes")]) -> None:
    """Say what is there: counts, sizes, formats, undecodable files by name."""
    from dcdist.data.info import info as describe

    typer.echo("\n".join(describe(root).lines()))


# What a finished run gives, after the commands that make one.
app.command()(assign)
app.command()(export)
app.command()(report)


def main(arguments: list[str] | None = None) -> Any:
    """Runs a command; every error that is meant for the user ends in its message and its exit code."""
    try:
        return app(arguments, obj=arguments)
    except DcdistError as error:
        if not _is_one_of_many():
            prefix = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            typer.echo(f"dcdist: {prefix}{error}", err=True)
        sys.exit(int(error.exit_code))
    except OSError as error:  # a full disk, a folder without rights
        typer.echo(f"dcdist: files cannot be read or written: {error}", err=True)
        sys.exit(int(ExitCode.FAILURE))
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.RUN_AGAIN))


def _is_one_of_many() -> bool:
    """A process whose peers on this machine meet the same error (a config that they all read); the first says it."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) != "0"


if __name__ == "__main__":
    main()

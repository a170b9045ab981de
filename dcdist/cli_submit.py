"""`dcdist submit slurm|ray|k8s`: hands a run to a cluster; `--dry-run` prints what would be handed over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

submit_app = typer.Typer(help="Hand a run to SLURM, Ray or Kubernetes.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Argument(help="experiment file (YAML)")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ...", metavar="[a.b=value]...")]
Nodes = Annotated[int, typer.Option(help="machines")]
GpusPerNode = Annotated[int, typer.Option(help="GPUs of a machine, a process each; 0: CPUs")]
Time = Annotated[str | None, typer.Option(help="limit, as sbatch takes it: minutes, H:MM:SS or D-HH:MM:SS")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the whole job and submit nothing")]


@submit_app.command("slurm")
def submit_slurm(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 0,
    tasks_per_node: Annotated[int | None, typer.Option(help="processes of a machine without GPUs; 1")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="cores of a process")] = None,
    partition: Annotated[str | None, typer.Option(help="one, or several with commas")] = None,
    account: Annotated[str | None, typer.Option(help="who pays")] = None,
    qos: Annotated[str | None, typer.Option(help="quality of service")] = None,
    time: Time = None,
    mem: Annotated[str | None, typer.Option(help="memory of a machine, as in 64G")] = None,
    job_name: Annotated[str | None, typer.Option(help="by default the last part of run.dir")] = None,
    signal_seconds: Annotated[int, typer.Option(help="the run is told so long before its time limit")] = 180,
    sbatch: Annotated[list[str] | None, typer.Option(help="any other option, NAME=VALUE or NAME; repeatable")] = None,
    folder: Annotated[Path | None, typer.Option(help="script and logs, on a shared disk; by default RUN/slurm")] = None,
    dry_run: DryRun = False,
) -> None:
    """Submit a run through submitit; prints the job's id. Preempted, it saves and is requeued."""
    from dcdist.config.load import load_config
    from dcdist.launch.slurm import SlurmResources, SlurmSubmission

    others = {name.removeprefix("--"): value for name, _, value in (option.partition("=") for option in sbatch or ())}
    resources = SlurmResources(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        tasks_per_node=tasks_per_node,
        cpus_per_task=cpus_per_task,
        partition=partition,
        account=account,
        qos=qos,
        time=time,
        mem=mem,
        job_name=job_name,
        signal_seconds=signal_seconds,
        others=others,
    )
    submission = SlurmSubmission(load_config(config, overrides or ()), resources, folder)
    typer.echo(submission.script() if dry_run else submission.submit())


@submit_app.command("ray")
def submit_ray(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Annotated[str | None, typer.Option(help="of the job server, http://HEAD:8265; RAY_ADDRESS")] = None,
    submission_id: Annotated[str | None, typer.Option(help="the job's name; by default one of the server's")] = None,
    dry_run: DryRun = False,
) -> None:
    """Hand a run to a Ray cluster's job server; prints the job's name. `ray job stop` lets it save first.

    launch.num_processes and launch.min_processes say how many workers there are; relative paths of the config must be
    the same files on all nodes.
    """
    from dcdist.config.load import load_config
    from dcdist.launch.ray import RaySubmission

    submission = RaySubmission(load_config(config, overrides or ()), address, submission_id)
    typer.echo(submission.describe() if dry_run else submission.submit())


@submit_app.command("k8s")
def submit_k8s(
    config: ConfigFile,
    overrides: Overrides = None,
    base: Annotated[Path, typer.Option(help="kustomization: k8s/job, k8s/rayjob or an overlay")] = Path("k8s/job"),
    name: Annotated[str | None, typer.Option(help="of the Job; by default the last part of run.dir")] = None,
    image: Annotated[str | None, typer.Option(help="built from k8s/Dockerfile")] = None,
    namespace: Annotated[str | None, typer.Option(help="Kubernetes namespace")] = None,
    nodes: Annotated[int | None, typer.Option(help="pods")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of a pod, a process each; 0: CPUs")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(help="cores of a pod")] = None,
    memory: Annotated[str | None, typer.Option(help="of a pod, as in 32Gi")] = None,
    dry_run: DryRun = False,
) -> None:
    """Apply a run to a Kubernetes cluster with kubectl; what is not given stays as the base has it."""
    from dcdist.config.load import load_config
    from dcdist.launch.kubernetes import KubernetesSubmission, name_of_run, render, submit

    submission = KubernetesSubmission(
        config=config,
        base=base,
        name=name or name_of_run(load_config(config, overrides or ()).run.dir),
        overrides=tuple(overrides or ()),
        image=image,
        namespace=namespace,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        memory=memory,
    )
    typer.echo(render(submission) if dry_run else submit(submission))

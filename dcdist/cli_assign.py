"""`dcdist assign RUN SRC --out FILE.parquet`: the clusters of any images, by a run that is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dcdist.cli_processes import NumProcesses, share_out

if TYPE_CHECKING:
    from dcdist.errors import ExitCode
    from dcdist.member import Member


def assign(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="run directory (run.dir), local or any fsspec URL")],
    source: Annotated[str, typer.Argument(help="images: anything that data.root takes")],
    out: Annotated[str, typer.Option(help="Parquet file to write, local or any fsspec URL")],
    split: Annotated[str | None, typer.Option(help="only the images of this split; by default all")] = None,
    without: Annotated[
        str | None, typer.Option(help="no image of this split: as training did by heldout_split")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="the run as this stage left it; by default as it is")] = None,
    num_processes: NumProcesses = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file where it is there already")] = False,
) -> None:
    """Write the final cluster of every image, and its distance; of the run's own images as the run found them."""

    def share(member: Member) -> ExitCode:
        from dcdist.assign import assign as write_clusters
        from dcdist.errors import ExitCode

        written = write_clusters(run, source, out, member, split, stage, overwrite, without)
        if written is not None:
            typer.echo("\n".join(written.lines()))
        return ExitCode.DONE

    raise share_out(context, num_processes, device, share)

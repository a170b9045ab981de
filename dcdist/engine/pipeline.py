"""Stages one after another on one backbone, from wherever the newest checkpoint says the run is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dcdist.clustering.types import Clustering
from dcdist.engine.readout import Readout, ReadoutRecipe
from dcdist.engine.restore import StoredCheckpoint
from dcdist.engine.state import AdoptedClustering, Decodability, Progress
from dcdist.engine.trainer import Trainer

WriteClustering = Callable[[str, int | Literal["final"], Clustering], None]


class RunState:
    """What a run is, beside the weights: carried through its stages and its checkpoints."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.adopted = AdoptedClustering()
        self.decodability = Decodability()
        self.readout = Readout()

    def parts(self) -> dict[str, Any]:
        """The named parts, each with state_dict and load_state_dict."""
        return {
            "progress": self.progress,
            "clustering": self.adopted,
            "decodability": self.decodability,
            "readout": self.readout,
        }


@dataclass(frozen=True)
class Stage:
    """A stage ready to run. `states` are all named parts of a checkpoint during this stage."""

    name: str
    trainer: Trainer
    recipe: ReadoutRecipe
    states: Mapping[str, Any]


def run_stages(
    names: Sequence[str],
    build_stage: Callable[[int], Stage],
    state: RunState,
    found: StoredCheckpoint | None,
    write_clustering: WriteClustering,
) -> Stage:
    """Runs what is left of every stage; returns the last one.

    Args:
        names: of all stages, in order.
        build_stage: makes the stage of a number; the backbone is the same object in all of them.
        state: where the run is; filled from the checkpoint or by the stages.
        found: the checkpoint to go on from; None for a new run. Closed once it is loaded.
        write_clustering: (stage, epoch, clustering) into RUN/assignments or RUN/neighbors.
    """
    first = names.index(found.commit.position["stage"]) if found else 0
    for number in range(first, len(names)):
        stage = build_stage(number)
        if found and number == first:
            with found:
                found.load_into(stage.states)
        else:
            state.progress.begin_stage(names[number])
            state.adopted.clear()
            stage.trainer.method.begin(state.readout.on_features() if number else None)
        run_stage(stage, state, write_clustering)
    return stage


def run_stage(stage: Stage, state: RunState, write_clustering: WriteClustering) -> None:
    """What is left of one stage: its epochs, then its read-out, each ending in a checkpoint."""
    trainer = stage.trainer
    if state.progress.epoch < trainer.num_epochs:
        state.progress.stage_done = False  # a finished run whose horizon has grown
    trainer.run()
    if not state.progress.stage_done:
        with trainer.journal.phase("readout"):
            final = stage.recipe.read_out(
                state.readout,
                trainer.method,
                trainer.source,
                trainer.images,
                trainer.collectives,
                trainer.seed,
                trainer.boundary.between_steps,
            )
        write_clustering(stage.name, "final", final)
        trainer.journal.stage_done(final, trainer.source.labels)
        state.progress.stage_done = True
        trainer.save("final")

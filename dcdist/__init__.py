"""Deep clustering of images. `dcdist.load` gives what a run has trained; all else is the command line's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    import torch

    from dcdist.loading import Loaded

__all__ = ["load"]


def load(run: str | os.PathLike[str], stage: str | None = None, device: str | torch.device = "cpu") -> Loaded:
    """The network of a run and the transform of its images.

        module, transform = dcdist.load("runs/mine")
        features = module(transform("photograph.jpg").unsqueeze(0))  # [1, D]

    Args:
        run: the run's folder, local or any fsspec URL. It may be running: its newest whole checkpoint counts.
        stage: the network as this stage left it; None: as it is.
        device: where the network is to be, as torch calls it. The transform works on the CPU.

    Returns:
        `module`, in evaluation mode and full precision: normalised images [B, 3, S, S] -> features [B, D].
        `transform`: a path, encoded bytes, a picture of Pillow or a uint8 array [H, W, 3] -> float32 [3, S, S], the
        very pixels that the run's own passes over the images show to the network. It works in workers of a DataLoader.

    Raises:
        UsageError: there is no run, it has no checkpoint yet, or the stage has not ended.
        RunError: none of its checkpoints is whole.
    """
    from dcdist.loading import load_run  # imports torch, which takes seconds

    return load_run(run, stage, device)

"""Times of steps that a GPU is still computing when they return."""

from __future__ import annotations

import math
import time

import pytest
import torch

from dcdist.engine.training_step import StepSums
from tests.engine.test_journal import Timed, journal

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_the_steps_take_as_long_as_the_train_phase() -> None:
    timed = Timed()
    log, progress = journal(timed, every_num_steps=8)
    rows = torch.randn(4096, 4096, device="cuda") / math.sqrt(4096)
    rows @ rows  # loads what it needs
    torch.cuda.synchronize()
    began = time.perf_counter()
    with log.phase("train"):
        for step in range(1, 21):
            log.waited_for_data(0.0)
            product = rows
            for _ in range(20):
                product = product @ rows
            progress.advance_step()
            log.step(StepSums({"clusters": product.mean()}, {}), 0.5, is_last=step == 20)
    torch.cuda.synchronize()
    wall = time.perf_counter() - began
    assert sum(seconds for _, _, seconds in timed.steps) == pytest.approx(wall, rel=0.05)
    (train,) = (record["seconds"] for record in timed.records if record.get("event") == "phase_done")
    assert train == pytest.approx(wall, rel=0.05)

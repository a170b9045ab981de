"""The bank of rows: the newest row of each sample, on the rank that owns it, dealt out anew on other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dcdist.clustering.bank import FeatureBank
from dcdist.distributed.rows import StoredRows
from dcdist.engine.state_files import HashingWriter, flatten, unflatten, write_tensors
from dcdist.features import contiguous_range

NUM_SAMPLES = 10


def bank(own: range = range(NUM_SAMPLES)) -> FeatureBank:
    """Two views, one dimension."""
    return FeatureBank(own, 2, 1, torch.device("cpu"))


def write(target: FeatureBank, sample_ids: list[int], first: list[float]) -> None:
    """Rows whose second view is the first one's negative."""
    values = torch.tensor(first)
    target.write(torch.tensor(sample_ids), torch.stack([values, -values], dim=1).unsqueeze(2))


def content(found: FeatureBank) -> dict[int, float]:
    """The first view's value of each sample; the second one's is checked."""
    first, second = found.shards()
    assert torch.equal(first.sample_ids, second.sample_ids)
    assert first.sample_ids.tolist() == sorted(first.sample_ids.tolist())
    assert torch.equal(first.features, -second.features)
    assert first.features.dtype == torch.float32
    return dict(zip(first.sample_ids.tolist(), first.features[:, 0].tolist(), strict=True))


def test_rows_are_known_by_sample_and_an_unvisited_sample_keeps_its_own() -> None:
    found = bank()
    assert content(found) == {}
    write(found, [7, 2, 4], [1.0, 2.0, 3.0])
    assert content(found) == {2: 2.0, 4: 3.0, 7: 1.0}
    write(found, [4, 9], [5.0, 6.0])
    assert content(found) == {2: 2.0, 4: 5.0, 7: 1.0, 9: 6.0}


def test_of_a_sample_that_comes_twice_in_a_step_the_last_row_stays() -> None:
    found = bank()
    write(found, [3, 1, 3, 0, 3, 1], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert content(found) == {0: 4.0, 1: 6.0, 3: 5.0}


def test_the_last_row_of_thousands_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, NUM_SAMPLES, (5000,), generator=generator)
    found = bank()
    write(found, ids.tolist(), [float(position) for position in range(5000)])
    last = {sample: float((ids == sample).nonzero().max()) for sample in range(NUM_SAMPLES)}
    assert content(found) == last


def test_a_rank_takes_its_own_samples_alone() -> None:
    found = bank(range(3, 6))
    write(found, [2, 5, 6, 3, 0, 9], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert content(found) == {3: 4.0, 5: 2.0}
    nobody = bank(range(4, 4))
    write(nobody, [4, 5], [1.0, 2.0])
    assert content(nobody) == {}


def test_rows_of_lower_precision_and_rows_with_a_gradient_are_taken_as_they_are() -> None:
    found = bank()
    rows = torch.full((1, 2, 1), 0.5, dtype=torch.bfloat16, requires_grad=True)
    found.write(torch.tensor([1]), rows)
    shard = found.shards()[0]
    assert shard.features.tolist() == [[0.5]]
    assert not shard.features.requires_grad


def stored(states: Sequence[Any], folder: Path) -> dict[str, Any]:
    """What several ranks saved, as any rank reads it."""
    files = []
    for rank, state in enumerate(states):
        flat = flatten({"bank": state})
        files.append(folder / f"s.rows-{rank:05d}.safetensors")
        with files[-1].open("wb") as handle:
            write_tensors(flat.row_tensors(), HashingWriter(handle))
    found: dict[str, Any] = unflatten(flat.tree, {}, files)["bank"]
    assert isinstance(found["rows"], StoredRows)
    return found


def ranks(world_size: int) -> list[FeatureBank]:
    return [bank(contiguous_range(NUM_SAMPLES, rank, world_size)) for rank in range(world_size)]


@pytest.mark.parametrize("resumed", [1, 2, 3])
@pytest.mark.parametrize("saved", [1, 2, 3])
def test_a_checkpoint_is_dealt_out_anew_on_any_number_of_ranks(saved: int, resumed: int, tmp_path: Path) -> None:
    before = ranks(saved)
    for one in before:
        write(one, [8, 0, 5, 3], [1.0, 2.0, 3.0, 4.0])
        write(one, [5], [7.0])
    state = stored([one.state_dict() for one in before], tmp_path)
    after = ranks(resumed)
    for one in after:
        write(one, [1, 8], [-9.0, -9.0])  # what was there is gone
        one.load_state_dict(state)
        assert all(sample in one.own for sample in content(one))
    together = {sample: value for one in after for sample, value in content(one).items()}
    assert together == {0: 2.0, 3: 4.0, 5: 7.0, 8: 1.0}


def test_an_empty_bank_survives_a_checkpoint(tmp_path: Path) -> None:
    state = stored([one.state_dict() for one in ranks(2)], tmp_path)
    for one in ranks(3):
        write(one, [1, 8], [1.0, 1.0])
        one.load_state_dict(state)
        assert content(one) == {}

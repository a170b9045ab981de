"""Commit, lineage, pruning: what is on the disk after which calls, in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dcdist.errors import RunError, StopRequested
from dcdist.run_directory import RunDirectory
from tests.engine.checkpoint_states import (
    Holder,
    begin,
    folders,
    new_checkpointer,
    resume,
    save,
    start,
    state_at,
    train,
    wait_until_stopped,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def beginning(url: str, attempt: int) -> Any:
    return RunDirectory(url).read_attempt(attempt)["began_from"]


def test_what_a_save_writes(url: str) -> None:
    checkpointer, step = begin(url)
    assert (step, beginning(url, 1), checkpointer.newest) == (None, None, None)
    assert save(checkpointer, 12) == "step-00000012-train.0001"
    folder = Path(url, "checkpoints/step-00000012-train.0001")
    data = ["model.json", "model.safetensors", "progress.json", "progress.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ["COMMIT.json", *data]
    content = json.loads((folder / "COMMIT.json").read_text())
    assert content["format_version"] == 2
    assert (content["step"], content["kind"], content["attempt"]) == (12, "train", 1)
    assert (content["world_size"], content["identity_digest"]) == (1, "digest")
    assert content["position"] == {"stage": "main", "epoch": 1}
    assert content["time"].endswith("+00:00")
    assert {name: file["size"] for name, file in content["files"].items()} == {
        name: (folder / name).stat().st_size for name in data
    }


def test_goes_on_from_the_newest(url: str) -> None:
    train(url, range(1, 4))
    checkpointer, step = begin(url)
    assert (step, beginning(url, 2)) == (3, "step-00000003-train.0001")
    save(checkpointer, 4)
    assert begin(url)[1] == 4
    assert beginning(url, 3) == "step-00000004-train.0002"


def test_order_at_equal_step(url: str) -> None:
    checkpointer, _ = begin(url, keep=3)
    for kind in ("train", "final", "clustered"):
        save(checkpointer, 5, kind)
    assert str(checkpointer.newest) == "step-00000005-clustered.0001"
    assert begin(url)[1] == 5
    assert beginning(url, 2) == "step-00000005-clustered.0001"


def test_a_moment_is_committed_once(url: str) -> None:
    checkpointer, _ = begin(url)
    assert save(checkpointer, 5, "final") == save(checkpointer, 5, "final") == save(checkpointer, 5, "train")
    assert folders(url) == ["step-00000005-final.0001"]
    second, _ = begin(url)
    assert save(second, 5, "final") == "step-00000005-final.0001"
    assert save(second, 5, "clustered") == "step-00000005-clustered.0002"
    assert folders(url) == ["step-00000005-clustered.0002", "step-00000005-final.0001"]


def test_the_ends_of_stages_stay(url: str) -> None:
    checkpointer, _ = begin(url, keep=2)
    for step in range(1, 9):
        save(checkpointer, step, "final" if step in (2, 5) else "train")
    assert folders(url) == [
        f"step-{step:08d}-{kind}.0001" for step, kind in ((2, "final"), (5, "final"), (7, "train"), (8, "train"))
    ]


def test_an_uncommitted_folder_is_never_written_into(url: str) -> None:
    checkpointer, _ = begin(url)
    left = Path(url, "checkpoints/step-00000005-train.0001/model.json")
    left.parent.mkdir(parents=True)
    left.write_text("left")
    with pytest.raises(AssertionError, match="exists already"):
        save(checkpointer, 5)
    assert left.read_text() == "left"


def test_an_attempt_begins_once_and_before_it_saves(url: str) -> None:
    with pytest.raises(AssertionError, match="before it saves"):
        save(new_checkpointer(url), 1)
    checkpointer, _ = begin(url)
    with pytest.raises(AssertionError, match="once"):
        checkpointer.begin()
    with pytest.raises(AssertionError, match="keep=1"):
        new_checkpointer(url, keep=1)


def test_an_attempt_that_is_superseded_before_it_begins(url: str) -> None:
    first = new_checkpointer(url)
    begin(url)
    with pytest.raises(StopRequested, match="attempt 2 has taken over"):
        first.begin()


def test_states_are_read_by_name(url: str) -> None:
    train(url, range(1, 2))
    found = new_checkpointer(url).begin()
    assert found is not None
    with found:
        assert found.state_names() == ["model", "progress"]
        assert found.commit.position == {"stage": "main", "epoch": 0}
        assert found.commit.identity_digest == "digest"
        holder = Holder()
        found.load_into({"progress": holder})
        assert holder.state == {"step": 1, "stage": "main", "loss": 0.5}
        with pytest.raises(RunError, match="has no state 'bank', only model, progress"):
            found.load_into({"bank": Holder()})


def test_keeps_the_newest(url: str) -> None:
    checkpointer, _ = begin(url, keep=3)
    for step in range(1, 6):
        save(checkpointer, step)
    assert folders(url) == [f"step-0000000{step}-train.0001" for step in (3, 4, 5)]


def test_after_one_commit_of_its_own_the_beginning_stays(url: str) -> None:
    train(url, range(1, 4))
    checkpointer, _ = begin(url)
    save(checkpointer, 4)
    assert folders(url) == ["step-00000003-train.0001", "step-00000004-train.0002"]
    save(checkpointer, 5)
    assert folders(url) == ["step-00000004-train.0002", "step-00000005-train.0002"]


def test_prunes_what_is_off_the_line_once_training_is_past_it(url: str) -> None:
    train(url, range(1, 4))
    folder = Path(url, "checkpoints")
    (folder / "step-00000003-train.0001/model.json").unlink()
    checkpointer, step = begin(url)
    assert step == 2
    save(checkpointer, 3)
    assert folders(url) == ["step-00000002-train.0001", "step-00000003-train.0002"]


def test_removes_what_older_attempts_left_half_written_and_nothing_of_newer_ones(url: str) -> None:
    train(url, range(1, 4))
    for left in ("step-00000002-clustered.0001", "step-00000009-train.0001", "step-00000002-train.0007"):
        Path(url, "checkpoints", left).mkdir()
        Path(url, "checkpoints", left, "model.json").write_text("{}")
    checkpointer, _ = begin(url)
    names = ["step-00000002-train.0001", "step-00000002-train.0007", "step-00000003-train.0001"]
    assert folders(url) == names
    save(checkpointer, 4)
    assert folders(url) == [*names[1:], "step-00000004-train.0002"]


def test_a_superseded_attempt_commits_and_removes_nothing(url: str) -> None:
    checkpointer, _ = begin(url)
    for step in (1, 2):
        save(checkpointer, step)
    before = folders(url)
    begin(url)
    with pytest.raises(StopRequested, match=r"attempt 2 has taken over the run .*: attempt 1 stops"):
        save(checkpointer, 3)
    assert folders(url) == before


def test_what_a_straggler_commits_is_never_read(url: str) -> None:
    straggler = start(train, url, range(1, 10), fault="checkpoint:commit:3:*:SIGSTOP")
    wait_until_stopped(straggler)  # in its third save, after it has looked for newer attempts
    assert begin(url)[1] == 2
    resume(straggler)
    assert straggler.exitcode == 3
    assert "step-00000003-train.0001" in folders(url)
    states = {str(info.name): info.state for info in RunDirectory(url).inventory()}
    assert states["step-00000003-train.0001"] == "superseded"
    checkpointer, step = begin(url)
    assert step == 2
    save(checkpointer, 3)
    assert folders(url) == ["step-00000002-train.0001", "step-00000003-train.0003"]


def test_a_straggler_does_not_prune(url: str) -> None:
    straggler = start(train, url, range(1, 10), fault="checkpoint:committed:4:*:SIGSTOP")
    wait_until_stopped(straggler)  # steps 2, 3, 4 are there, and 2 is about to go
    begin(url)
    resume(straggler)
    assert straggler.exitcode == 3
    assert folders(url) == [f"step-0000000{step}-train.0001" for step in (2, 3, 4)]


def test_states_are_copies_of_what_is_saved(url: str) -> None:
    checkpointer, _ = begin(url)
    states = state_at(1)
    checkpointer.save(1, "train", states, {})
    states["model"].state["weight"].fill_(99)
    assert begin(url)[1] == 1


def test_what_was_loaded_outlives_its_files(url: str) -> None:
    train(url, range(1, 2))
    found = new_checkpointer(url).begin()
    assert found is not None
    with found:
        model = found.read("model")
    file = Path(url, found.name.folder, "model.safetensors")
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(model["weight"], torch.full((300, 7), 1.0))

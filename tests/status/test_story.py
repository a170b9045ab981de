"""What is kept of the records of a run that grows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from dcdist.run_directory import RunDirectory
from dcdist.status.growing import GrowingLines
from dcdist.status.story import Curve, Story
from dcdist.storage import LocalStorage, open_storage
from tests.status.runs import T0, HandWrittenRun, clustering, event, stage_begin, start, step


@pytest.fixture
def written(tmp_path: Path) -> HandWrittenRun:
    return HandWrittenRun(tmp_path)


def texts(story: Story) -> list[str]:
    return [entry.text for entry in story.events]


def test_what_a_later_attempt_does_again_replaces_what_the_earlier_one_did(written: HandWrittenRun) -> None:
    story = Story(written.directory)
    written.write(1, start(1, 0), stage_begin(0, 40), clustering(0, 0, 0.9))
    written.write(1, step(10, 4.0), step(20, 3.0), clustering(20, 2, 0.8), step(30, 2.0))
    story.read([1])
    assert story.stages["main"].loss_values() == [4.0, 3.0, 2.0]
    assert [balance.size_entropy_ratio for balance in story.stages["main"].balances()] == [0.9, 0.8]

    written.write(2, start(2, 20, began_from="step-00000020-train.0001"), stage_begin(20, 40, epoch=2))
    story.read([1, 2])
    assert story.stages["main"].loss_values() == [4.0, 3.0]
    written.write(2, clustering(20, 2, 0.7, nmi=0.5), step(30, 2.5, epoch=2))
    story.read([1, 2])
    main = story.stages["main"]
    assert main.loss_values() == [4.0, 3.0, 2.5]
    assert [(balance.epoch, balance.size_entropy_ratio) for balance in main.balances()] == [(0, 0.9), (2, 0.7)]
    assert [balance.nmi_previous for balance in main.balances()] == [None, 0.5]
    assert main.first_step == 0
    assert texts(story) == [
        "attempt 1 begins",
        "stage main begins",
        "epoch 1: 100 clusters, 0 refilled",
        "epoch 3: 100 clusters, 0 refilled",
        "attempt 2 goes on from step-00000020-train.0001",
        "epoch 3: 100 clusters, 0 refilled, 50% changed",
    ]


def test_read_at_once_it_is_the_same(written: HandWrittenRun) -> None:
    written.write(1, start(1, 0), stage_begin(0, 40), step(10, 4.0), step(20, 3.0))
    written.write(3, start(3, 10, began_from="step-00000010-train.0001"), stage_begin(10, 40), step(11, 3.5))
    story = Story(written.directory)
    story.read([1, 2, 3])  # the second attempt was killed before it recorded anything
    assert story.stages["main"].loss_values() == [4.0, 3.5]


def test_damaged_and_half_written_lines(written: HandWrittenRun) -> None:
    written.write(1, start(1, 0), stage_begin(0, 40), step(1, 4.0), rest='{"kind": "step", "st\n\x00\x00\n[]\n')
    whole = json.dumps(step(2, None))
    written.write(1, {"kind": "clustering"}, step(3, 2.0), rest=whole[:30])
    story = Story(written.directory)
    story.read([1])
    assert story.stages["main"].loss_values() == [4.0, 2.0]
    written.write(1, rest=whole[30:])
    story.read([1])
    assert story.stages["main"].loss_values() == [4.0, 2.0]
    written.write(1, rest="\n")
    story.read([1])
    assert story.stages["main"].loss_values() == [4.0, 2.0, None]


def test_records_that_lack_something_are_named(written: HandWrittenRun) -> None:
    written.write(1, event("collapse", 3), event("start", 3), event("checkpoint", 4), {**step(5, 1.0), "loss": "?"})
    story = Story(written.directory)
    story.read([1])
    assert texts(story) == ["main epoch 1, collapse", "event start", "checkpoint None"]
    assert story.stages["main"].loss_values() == [None]


def test_several_heads_are_one_clustering_with_the_worst_figures(written: HandWrittenRun) -> None:
    written.write(1, start(1, 0), stage_begin(0, 40))
    written.write(1, clustering(4, 1, 0.95, 0.04, 0.8, head=0, refilled=1), clustering(4, 1, 0.9, 0.1, 0.6, head=1))
    written.write(1, clustering(4, 1, 0.99, 0.02, 0.9, head=2, refilled=5))
    story = Story(written.directory)
    story.read([1])
    (balance,) = story.stages["main"].balances()
    assert (balance.num_heads, balance.num_clusters, balance.num_refilled) == (3, 300, 6)
    assert (balance.size_entropy_ratio, balance.size_max_ratio, balance.nmi_previous) == (0.9, 0.1, 0.6)
    assert texts(story)[2:] == ["epoch 2: 300 clusters in 3 heads, 6 refilled, 40% changed"]
    assert story.events[-1].tone == "warning"  # 6 of 300 are more than 1 %
    assert story.num_events == 3


def test_stages_and_events(written: HandWrittenRun) -> None:
    written.write(
        1, start(1, 0), stage_begin(0, 10, stage="simclr"), event("phase", 0, T0 + 3, stage="simclr", phase="train")
    )
    written.write(1, step(10, 5.0, stage="simclr"), stage_begin(10, 30, stage="scan"))
    written.write(1, step(20, 0.5, stage="scan"), event("phase", 20, T0 + 9, stage="scan", phase="readout"))
    written.write(1, event("checkpoint", 20, stage="scan", name="step-00000020-train.0001"))
    written.write(1, event("collapse", 20, stage="scan", message="collapsing: one cluster\nhas everything"))
    story = Story(written.directory)
    story.read([1])
    assert {name: (stage.first_step, stage.loss_values()) for name, stage in story.stages.items()} == {
        "simclr": (0, [5.0]),
        "scan": (10, [0.5]),
    }
    assert (story.phase, story.phase_began) == ("readout", T0 + 9)
    assert [(entry.text, entry.tone) for entry in list(story.events)[1:]] == [
        ("stage simclr begins", "plain"),
        ("stage scan begins", "plain"),
        ("checkpoint step-00000020-train.0001", "quiet"),
        ("scan epoch 1: collapsing: one cluster\nhas everything", "bad"),
    ]


def test_a_curve_keeps_every_second_value_then_every_fourth() -> None:
    curve = Curve()
    for number in range(3000):
        if curve.wants_next():
            curve.add(number, float(number))
    assert [number for number, _ in curve.points] == list(range(0, 3000, 4))


def test_the_newest_loss_is_known_where_the_curve_leaves_it_out(written: HandWrittenRun) -> None:
    written.write(1, start(1, 0), stage_begin(0, 4000), *(step(number, 1 / number) for number in range(1, 3001)))
    story = Story(written.directory)
    story.read([1])
    losses = story.stages["main"].loss_values()
    assert losses[0] == 1.0
    assert losses[-1] == 1 / 3000
    assert len(losses) <= 1024
    assert losses == sorted(losses, reverse=True)  # type: ignore[type-var]


class CountingStorage(LocalStorage):
    """Counts the bytes that are read."""

    num_bytes = 0

    def open_for_reading(self, path: str) -> BinaryIO:
        storage = self

        class Counting(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                data = super().read(size) or b""
                storage.num_bytes += len(data)
                return data

        return cast(BinaryIO, Counting(self.local_path(path)))

    def read_bytes(self, path: str) -> bytes:
        raise AssertionError(f"{path} is read as a whole")


def test_a_refresh_reads_what_is_new(written: HandWrittenRun) -> None:
    storage = CountingStorage(str(written.folder))
    run = RunDirectory(str(written.folder))
    run.storage = storage
    story = Story(run)
    written.write(1, start(1, 0), stage_begin(0, 40))
    sizes = []
    for num_before in (10, 10_000):
        written.write(1, *(step(number, 1.0) for number in range(num_before)))
        story.read([1])
        storage.num_bytes = 0
        written.write(1, step(1, 1.0), rest=json.dumps(step(2, 1.0))[:50])
        story.read([1])
        sizes.append(storage.num_bytes)
        written.write(1, rest=json.dumps(step(2, 1.0))[50:] + "\n")
    line = len(json.dumps(step(1, 1.0))) + 1
    assert sizes == [line + 50, line + 50]
    story.read([1])
    storage.num_bytes = 0
    story.read([1])
    assert storage.num_bytes == 0


@pytest.mark.usefixtures("s3_server")
@pytest.mark.parametrize("url", ["memory://growing", "s3://bucket/run", "local"])
def test_lines_of_a_growing_file(tmp_path: Path, url: str) -> None:
    storage = open_storage(url if "://" in url else str(tmp_path))
    lines = GrowingLines(storage, "metrics/0001.jsonl")
    assert list(lines.new()) == []
    storage.write_bytes("metrics/0001.jsonl", b"one\ntwo\nthr")
    assert list(lines.new()) == [b"one", b"two"]
    storage.write_bytes("metrics/0001.jsonl", b"one\ntwo\nthree\nfour\n")
    assert next(lines.new()) == b"three"
    assert list(lines.new()) == [b"four"]
    assert list(lines.new()) == []


def test_lines_longer_than_a_block(tmp_path: Path) -> None:
    text: Any = b"x" * 600_000
    storage = open_storage(str(tmp_path))
    storage.write_bytes("file", text + b"\nshort\n")
    assert [len(line) for line in GrowingLines(storage, "file").new()] == [600_000, 5]

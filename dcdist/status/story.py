"""What the attempts of a run recorded, as one story that grows with them and stays small."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dcdist.metrics.jsonl import Record, parse_record
from dcdist.metrics.progress import describe_record
from dcdist.run_directory import RunDirectory
from dcdist.status.growing import GrowingLines

Tone = Literal["plain", "quiet", "warning", "bad"]

CHECKPOINT = "checkpoint "  # the events of checkpoints begin so

_MOST_POINTS = 1024  # of a curve, an even number; a terminal has fewer columns
_MOST_EVENTS = 200
_STEP_LINE = b'{"kind": "step"'  # so most lines begin, few of which need be parsed
_MANY_REFILLED = 0.01  # of the clusters


@dataclass(frozen=True)
class Event:
    """Something that happened once, for people; `time` in unix seconds."""

    time: float
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Balance:
    """A clustering: of several heads the worst figures, the sums of clusters and refills. Ratios; None: not known."""

    epoch: int  # from 0
    num_clusters: int
    num_refilled: int
    num_heads: int
    size_entropy_ratio: float | None
    size_max_ratio: float | None
    nmi_previous: float | None
    changed_ratio: float | None


class Curve:
    """Values by step, of which at most 1,024 are kept: each of the first, later every second, every fourth, ..."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float | None]] = []
        self._stride = 1
        self._num_offered = 0

    def wants_next(self) -> bool:
        """Whether the next value is one of those to be added; counts it."""
        self._num_offered += 1
        return (self._num_offered - 1) % self._stride == 0

    def add(self, step: int, value: float | None) -> None:
        self.points.append((step, value))
        if len(self.points) > _MOST_POINTS:
            self.points = self.points[::2]
            self._stride *= 2

    def go_back(self, step: int) -> None:
        """Forgets what came after a step."""
        self.points = [point for point in self.points if point[0] <= step]


@dataclass
class StageStory:
    """What is known of a stage. Steps are those of the run."""

    first_step: int
    losses: Curve = field(default_factory=Curve)
    newest: tuple[int, float | None] | None = None  # step and loss of the newest record, which the curve may lack
    clusterings: dict[tuple[int, int], dict[int, Record]] = field(default_factory=dict)  # (step, epoch) -> by head

    def loss_values(self) -> list[float | None]:
        """In the order of steps, None where there was nothing to learn from."""
        points = self.losses.points
        if self.newest is not None and (not points or self.newest[0] > points[-1][0]):
            points = [*points, self.newest]
        return [loss for _, loss in points]

    def balances(self) -> list[Balance]:
        """Of the clusterings, in their order."""
        return [_balance(epoch, list(heads.values())) for (_, epoch), heads in self.clusterings.items()]

    def go_back(self, step: int) -> None:
        """Forgets what came after a step."""
        self.losses.go_back(step)
        self.newest = self.newest if self.newest and self.newest[0] <= step else None
        self.clusterings = {key: heads for key, heads in self.clusterings.items() if key[0] <= step}


class Story:
    """Reads what is new in the metrics of a run and keeps what a picture of the run needs.

    An attempt that goes on from a checkpoint repeats the steps after it: what earlier attempts recorded of these is
    forgotten, but for events, which happened. Damaged lines are left out.

    Args:
        run: whose metrics to read.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.stages: dict[str, StageStory] = {}
        self.phase: str | None = None
        self.phase_began: float | None = None  # unix seconds
        self.events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self.num_events = 0
        self._run = run
        self._files: dict[int, GrowingLines] = {}
        self._attempt_begins = False
        self._stage: StageStory | None = None
        self._skipped: bytes | None = None  # the newest step record, where it was not parsed
        self._last_clustering: tuple[Any, ...] | None = None  # what the last event was about

    def read(self, attempts: Sequence[int]) -> None:
        """Takes in what was recorded since the last call.

        Args:
            attempts: the numbers of all, ascending; but for the newest that were read before they do not grow any more.

        Raises:
            OSError: the storage fails. The next call goes on from there.
        """
        newest = max(self._files, default=0)
        for number in attempts:
            if number < newest:
                continue
            if number not in self._files:
                self._files[number] = GrowingLines(self._run.storage, self._run.metrics_file(number))
                self._attempt_begins = True
                self.phase = self.phase_began = None
            for line in self._files[number].new():
                self._take(line)
            if self._skipped is not None:
                record, self._skipped = parse_record(self._skipped), None
                if record is not None and self._stage is not None:
                    self._stage.newest = record["step"], number_in(record, "loss")

    def _take(self, line: bytes) -> None:
        is_step = line.startswith(_STEP_LINE) and self._stage is not None and not self._attempt_begins
        if is_step and self._stage is not None and not self._stage.losses.wants_next():
            self._skipped = line
            return
        record = parse_record(line)
        if record is None:
            return
        if self._attempt_begins:
            self._attempt_begins = False
            for stage in self.stages.values():
                stage.go_back(record["step"])
        if record["kind"] == "event":
            self._take_event(record)
        elif record["kind"] in ("step", "clustering"):
            self._take_figures(record)
        elif record["kind"] == "evaluation":
            self._tell(record, describe(record))

    def _enter(self, record: Record) -> StageStory:
        self._stage = self.stages.setdefault(record["stage"], StageStory(record["step"]))
        self._stage.first_step = min(self._stage.first_step, record["step"])
        return self._stage

    def _take_figures(self, record: Record) -> None:
        stage = self._enter(record)
        if record["kind"] == "step":
            self._skipped, stage.newest = None, None
            stage.losses.add(record["step"], number_in(record, "loss"))
            return
        heads = stage.clusterings.setdefault((record["step"], record["epoch"]), {})
        heads[record["head"]] = record
        balance = _balance(record["epoch"], list(heads.values()))
        about = (record["stage"], record["step"], record["epoch"])
        if self._last_clustering == about:  # another head: one line for all
            self.events.pop()
            self.num_events -= 1
        is_bad = balance.num_refilled > _MANY_REFILLED * balance.num_clusters
        self._tell(record, _clustering_text(balance), "warning" if is_bad else "plain")
        self._last_clustering = about

    def _take_event(self, record: Record) -> None:
        name = record.get("event")
        if name == "start":  # its stage is the run's first, wherever the run goes on
            self._tell(record, describe(record), "warning" if record.get("attempt") != 1 else "plain")
            return
        is_new = record["stage"] not in self.stages
        self._enter(record)
        if name == "stage_begin" and is_new:
            self._tell(record, f"stage {record['stage']} begins")
        elif name == "phase":
            self.phase, self.phase_began = str(record.get("phase")), float(record["time"])
        elif name == "checkpoint":
            self._tell(record, f"{CHECKPOINT}{record.get('name')}", "quiet")
        elif name == "collapse":
            self._tell(record, describe(record), "bad")
        else:
            text = describe(record)
            self._tell(record, text, "warning" if name == "undecodable" else "plain")

    def _tell(self, record: Record, text: str | None, tone: Tone = "plain") -> None:
        if text is not None:
            self.events.append(Event(float(record["time"]), text, tone))
            self.num_events += 1
            self._last_clustering = None


def describe(record: Record) -> str | None:
    """As the run itself says it; of a record that lacks something its bare name."""
    try:
        return describe_record(record)
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{record['kind']} {record.get('event', '')}".strip()


def number_in(record: Record, name: str) -> float | None:
    """A finite number, None for all else."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _balance(epoch: int, heads: Sequence[Record]) -> Balance:
    def known(name: str) -> list[float]:
        return [value for head in heads if (value := number_in(head, name)) is not None]

    return Balance(
        epoch=epoch,
        num_clusters=int(sum(known("num_clusters"))),
        num_refilled=int(sum(known("num_empty_repaired"))),
        num_heads=len(heads),
        size_entropy_ratio=min(known("size_entropy_ratio"), default=None),
        size_max_ratio=max(known("size_max_ratio"), default=None),
        nmi_previous=min(known("nmi_previous"), default=None),
        changed_ratio=max(known("changed_ratio"), default=None),
    )


def _clustering_text(balance: Balance) -> str:
    heads = f" in {balance.num_heads} heads" if balance.num_heads > 1 else ""
    text = f"epoch {balance.epoch + 1}: {balance.num_clusters} clusters{heads}, {balance.num_refilled} refilled"
    return text + ("" if balance.changed_ratio is None else f", {balance.changed_ratio:.0%} changed")

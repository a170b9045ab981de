"""What makes a checkpoint believable: its folder's name, its COMMIT.json, and the line of attempts that it belongs to.

A checkpoint is a folder checkpoints/step-NNNNNNNN-KIND.ATTEMPT/ with data files and, written last and at once, the file
COMMIT.json that names them with sizes and checksums. A folder without it is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Literal, cast, get_args

from dcdist.errors import UsageError
from dcdist.filesystems import StorageError
from dcdist.storage import Storage

FORMAT_VERSION = 2  # of the files and of the names of states
COMMIT_FILE = "COMMIT.json"
CHECKPOINTS = "checkpoints"

# In the order of their making at equal step: trained up to it, the end of training, clusters for what comes next.
Kind = Literal["train", "final", "clustered"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_NAME = re.compile(rf"step-(\d{{8,}})-({'|'.join(_KINDS)})\.(\d{{4,}})")


@dataclass(frozen=True)
class CheckpointName:
    """The name of a checkpoint's folder."""

    step: int
    kind: Kind
    attempt: int

    def __str__(self) -> str:
        return f"step-{self.step:08d}-{self.kind}.{self.attempt:04d}"

    @classmethod
    def parse(cls, text: str) -> CheckpointName | None:
        """None where the text is not such a name."""
        match = _NAME.fullmatch(text)
        return match and cls(int(match[1]), cast(Kind, match[2]), int(match[3]))

    @property
    def moment(self) -> tuple[int, int]:
        """What it holds, in the order of training: the same for the same state saved by different attempts."""
        return self.step, _KINDS.index(self.kind)

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts the oldest first."""
        return (*self.moment, self.attempt)

    @property
    def folder(self) -> str:
        """Relative to the run's folder."""
        return f"{CHECKPOINTS}/{self}"


class DamagedCheckpointError(Exception):
    """A committed checkpoint is not as it was written; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class StoredFile:
    """A data file as COMMIT.json vouches for it."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """The content of COMMIT.json. `position` is where training is, as the caller of the save wrote it (JSON)."""

    name: CheckpointName
    position: dict[str, Any]
    files: dict[str, StoredFile]
    world_size: int
    identity_digest: str
    time: str  # UTC, ISO 8601

    def to_bytes(self) -> bytes:
        """JSON with a checksum of itself, so that no changed digit goes unnoticed."""
        content = {
            "format_version": FORMAT_VERSION,
            **asdict(self.name),
            "position": self.position,
            "files": {name: asdict(file) for name, file in sorted(self.files.items())},
            "world_size": self.world_size,
            "identity_digest": self.identity_digest,
            "time": self.time,
        }
        return json.dumps({**content, "checksum": _checksum(content)}, indent=1, allow_nan=False).encode()

    @property
    def num_bytes(self) -> int:
        """Of all data files."""
        return sum(file.size for file in self.files.values())


def parse_commit(name: CheckpointName, data: bytes) -> Commit:
    """COMMIT.json of the checkpoint with this name.

    Raises:
        DamagedCheckpointError: it is not as it was written, or belongs to another checkpoint.
        UsageError: a version of dcdist with another format wrote it.
    """
    try:
        content = json.loads(data)
        checksum = content.pop("checksum")
        is_whole = checksum == _checksum(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(
            f"{name.folder}/{COMMIT_FILE} does not read as what was written: {error!r}"
        ) from error
    if not is_whole:
        raise DamagedCheckpointError(f"{name.folder}/{COMMIT_FILE} does not have the checksum that it was written with")
    if content["format_version"] != FORMAT_VERSION:
        raise UsageError(
            f"checkpoint {name} has format version {content['format_version']}, this dcdist reads version "
            f"{FORMAT_VERSION}: continue the run with the dcdist that wrote it, or start another run.dir"
        )
    written = CheckpointName(content["step"], content["kind"], content["attempt"])
    if written != name:
        raise DamagedCheckpointError(f"{name.folder}/{COMMIT_FILE} is that of another checkpoint, {written}")
    return Commit(
        name=name,
        position=content["position"],
        files={file: StoredFile(**stored) for file, stored in content["files"].items()},
        world_size=content["world_size"],
        identity_digest=content["identity_digest"],
        time=content["time"],
    )


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def list_checkpoints(storage: Storage) -> list[CheckpointName]:
    """All folders that are named like a checkpoint, committed or not, the oldest first."""
    names = (CheckpointName.parse(text) for text in storage.list(CHECKPOINTS))
    return sorted((name for name in names if name is not None), key=lambda name: name.order)


def is_committed(storage: Storage, name: CheckpointName) -> bool:
    """Whether COMMIT.json is there; what it says is not read."""
    return storage.exists(f"{name.folder}/{COMMIT_FILE}")


def read_commit(storage: Storage, name: CheckpointName) -> Commit:
    """Raises DamagedCheckpointError, also where the file cannot be read, or UsageError as parse_commit.

    A server that fails says nothing of the file: its StorageError goes on, here and in verify_files.
    """
    try:
        data = storage.read_bytes(f"{name.folder}/{COMMIT_FILE}")
    except StorageError:
        raise
    except OSError as error:
        raise DamagedCheckpointError(f"{name.folder}/{COMMIT_FILE} cannot be read: {error}") from error
    return parse_commit(name, data)


def verify_files(storage: Storage, commit: Commit) -> None:
    """Reads every data file. Raises DamagedCheckpointError naming the first that is missing, too short or changed."""
    for file, expected in commit.files.items():
        path = f"{commit.name.folder}/{file}"
        try:
            size = storage.size(path)
            if size != expected.size:
                raise DamagedCheckpointError(f"{path} has {size} bytes, {expected.size} were written")
            with storage.open_for_reading(path) as handle:
                digest = _sha256(handle)
        except StorageError:
            raise
        except OSError as error:
            raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
        if digest != expected.sha256:
            raise DamagedCheckpointError(f"{path} has changed: its SHA-256 is {digest}, {expected.sha256} was written")


def _sha256(handle: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def is_on_line(name: CheckpointName, attempt: int, beginnings: Mapping[int, CheckpointName | None]) -> bool:
    """Whether a checkpoint is on the line of an attempt.

    That line is all that the attempt committed, and before it the line of the attempt that committed the checkpoint it
    began from, up to this checkpoint. What an attempt committed after a newer one had begun elsewhere is on no line.

    Args:
        name: the checkpoint.
        attempt: the attempt whose line it is.
        beginnings: attempt -> the checkpoint that it began from, None for a start from nothing.
    """
    newest: CheckpointName | None = None  # that of `attempt` which still is on the line, None: all of them
    while name.attempt != attempt:
        newest = beginnings.get(attempt)
        if newest is None or newest.attempt >= attempt:
            return False
        attempt = newest.attempt
    return newest is None or name.order <= newest.order

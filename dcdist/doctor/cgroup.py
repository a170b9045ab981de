"""What the control groups that this process is in allow it (containers and SLURM set these)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PROCESS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


class Room(NamedTuple):
    """Memory in bytes."""

    limit: int
    free: int


def memory_room(process: Path = _PROCESS, mount: Path = _MOUNT) -> Room | None:
    """The tightest limit of memory, None where there is none."""
    rooms = []
    for folder in _folders("memory", process, mount):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        if limit is not None and limit < 1 << 60:  # version 1 says "none" by the largest number
            rooms.append(Room(limit, max(0, limit - used + _reclaimable(folder))))
    return min(rooms, key=lambda room: room.free, default=None)


def cpu_quota(process: Path = _PROCESS, mount: Path = _MOUNT) -> float | None:
    """Cores' worth of time that the process may take, None where that is not limited."""
    quotas = []
    for folder in _folders("cpu", process, mount):
        try:
            quota, _, period = (folder / "cpu.max").read_text().partition(" ")
        except OSError:
            quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.strip().isdigit() and period.strip().isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _folders(controller: str, process: Path, mount: Path) -> Iterator[Path]:
    """Those of the groups and of all around them, of version 2 and of version 1."""
    for line in _text(process).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        folder = (mount / controller if controllers else mount) / path.lstrip("/")
        root = mount / controller if controllers else mount
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))


def _reclaimable(folder: Path) -> int:
    """Bytes of files that are kept in memory as long as nobody needs it; they count as used."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

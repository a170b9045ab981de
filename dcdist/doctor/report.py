"""From the checks of all ranks to the lines that rank 0 prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dcdist.doctor.check import Check, worst
from dcdist.doctor.machine import Facts, ranks_text


@dataclass(frozen=True)
class Findings:
    """What one process found: of itself, and what to compare."""

    facts: Facts
    checks: tuple[Check, ...]


def merge(processes: Sequence[Findings]) -> list[Check]:
    """A check of rank 0 that all others pass stays; what is wrong elsewhere is added, once for ranks that agree."""
    merged = []
    for check in processes[0].checks:
        wrong: dict[Check, list[int]] = {}
        for process in processes:
            for other in process.checks:
                if other.name == check.name and other.state != "ok":
                    wrong.setdefault(other, []).append(process.facts.rank)
        if check.state == "ok":
            merged.append(check)
        for other, ranks in wrong.items():
            if len(ranks) == len(processes):
                merged.append(other)
                continue
            hosts = sorted({process.facts.host for process in processes if process.facts.rank in ranks})
            more = f" and {len(hosts) - 4} more" if len(hosts) > 4 else ""
            where = f"rank {ranks_text(ranks)} on {', '.join(hosts[:4])}{more}: "
            merged.append(replace(other, finding=where + other.finding))
    return merged


def summary(checks: Sequence[Check], num_processes: int, num_machines: int, seconds: float) -> str:
    """The last line."""
    counts = {state: sum(check.state == state for check in checks) for state in ("ok", "warn", "FAIL")}
    whole = ", ".join(f"{count} {state}" for state, count in counts.items())
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    machines = "1 machine" if num_machines == 1 else f"{num_machines} machines"
    return f"{whole} on {processes} of {machines}, in {seconds:.1f} s"


def has_failed(checks: Sequence[Check]) -> bool:
    """Whether anything has."""
    return worst([check.state for check in checks]) == "FAIL"

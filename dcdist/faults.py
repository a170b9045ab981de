"""Named points at which a test (or a soak run) kills a process; without DCDIST_FAULT each is a comparison with None.

DCDIST_FAULT="label:count[:rank[:signal]]" sends the own process SIGKILL, or the named signal, when it passes the label
for the count-th time (from 1) on that rank (of the environment variable RANK, else SLURM's; without a rank, or with
"*", on any).
A label may itself hold colons: "checkpoint:commit:2:*:SIGTERM" is the second passing of "checkpoint:commit".
"""

from __future__ import annotations

import functools
import os
import re
import signal
from collections import Counter
from dataclasses import dataclass

_WORD = r"[a-z0-9_.-]*[a-z][a-z0-9_.-]*"  # a label's words are not bare numbers, so that the count is found
_SYNTAX = re.compile(
    rf"(?P<label>{_WORD}(?::{_WORD})*):(?P<count>[1-9]\d*)(?::(?P<rank>\d+|\*)(?::(?P<signal>SIG[A-Z0-9]+))?)?"
)

_passings: Counter[str] = Counter()


@dataclass(frozen=True)
class _Fault:
    label: str
    count: int
    signal: signal.Signals


def parse_fault(text: str, rank: str) -> _Fault | None:
    """The fault that the text of DCDIST_FAULT asks for in the process of this rank.

    Returns:
        None where it is meant for another rank.

    Raises:
        ValueError: the text does not have the syntax label:count[:rank[:signal]], or the signal is unknown.
    """
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise ValueError(
            f"DCDIST_FAULT={text!r} is not label:count[:rank[:signal]], for example checkpoint:commit:1:0:SIGKILL"
        )
    name = match["signal"] or "SIGKILL"
    if name not in signal.Signals.__members__:
        raise ValueError(
            f"DCDIST_FAULT={text!r}: there is no signal {name}, use SIGKILL, SIGTERM, SIGUSR2, SIGSTOP, ..."
        )
    if match["rank"] not in (None, "*", rank):
        return None
    return _Fault(match["label"], int(match["count"]), signal.Signals[name])


@functools.cache
def _fault() -> _Fault | None:
    text = os.environ.get("DCDIST_FAULT")
    return None if text is None else parse_fault(text, os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def fault_point(label: str) -> None:
    """Passes a point at which the process may be killed on purpose (see the module); the environment is read once.

    Raises:
        ValueError: DCDIST_FAULT is set and not understood.
    """
    fault = _fault()
    if fault is None or fault.label != label:
        return
    _passings[label] += 1
    if _passings[label] == fault.count:
        os.kill(os.getpid(), fault.signal)

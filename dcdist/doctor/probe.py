"""A process beside this one that tries the native libraries: one that crashes or hangs takes only itself along."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

from dcdist.doctor.check import Check

PROBED = ("torchvision", "faiss")  # in this order
_REMEDY = (
    "libraries of different builds in one process? Install torch, torchvision and faiss anew into an empty environment"
)


class Probe:
    """The process; it is started at once, for it imports for seconds."""

    def __init__(self, device: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dcdist.doctor.native", device],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def checks(self, seconds: float) -> list[Check]:
        """What it found, one check for each of PROBED; it is given so long to end."""
        try:
            output, errors = self._process.communicate(timeout=seconds)
            ending = _describe_end(self._process.returncode, errors)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
            ending = f"did not end within {seconds:.0f} s"
        done = [check for check in map(_parse, output.splitlines()) if check is not None]
        # The first one that is missing is what the process died of.
        for name in PROBED[len(done) :]:
            done.append(Check(name, "FAIL", ending, _REMEDY))
            ending = f"was not tried, for {name} ended the process that tries it"
        return done

    def close(self) -> None:
        """Ends the process, where it still runs."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _describe_end(return_code: int, errors: str) -> str:
    last = (errors.strip().splitlines() or [""])[-1]
    if return_code < 0:
        return f"crashed the process that tried it ({signal.Signals(-return_code).name}) {last}".strip()
    return f"ended the process that tried it with exit code {return_code}: {last}"


def _parse(line: str) -> Check | None:
    """None for what libraries print."""
    try:
        content = json.loads(line)
        return Check(**content)
    except (ValueError, TypeError):
        return None

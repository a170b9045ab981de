"""`dcdist doctor`: looks for what breaks runs on a cluster, before a run does. Imports no torch."""

from __future__ import annotations

import faulthandler
import os
import threading
import time

from dcdist.doctor.check import Check, one_line
from dcdist.doctor.probe import Probe
from dcdist.errors import ExitCode, UsageError

IMPORT_SECONDS = 35.0  # leaves time for the checks
# A library that hangs without letting go of the interpreter stops every other bound: after this the process is ended.
LAST_RESORT_SECONDS = 58.0


def examine(run_dir: str | None, device: str) -> ExitCode:
    """Runs every check in this process, together with the others that the launcher started; rank 0 prints.

    A process whose group cannot be taken down, or in which something still hangs, is ended here.

    Args:
        run_dir: where a run's folder is to lie, a path or an fsspec URL; None leaves the checks of storage out.
        device: "auto", "cpu" or "cuda", as launch.device.

    Returns:
        DONE where nothing failed, else FAILURE.

    Raises:
        UsageError: there is no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: use auto, cpu or cuda")
    began = time.monotonic()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else every attempt to connect prints a C++ stack
    faulthandler.dump_traceback_later(LAST_RESORT_SECONDS, exit=True, file=2)
    probe = Probe(device)
    importing = threading.Timer(IMPORT_SECONDS, _give_up_importing, [probe])
    importing.daemon = True
    importing.start()
    try:
        from dcdist.doctor.examination import run_checks

        importing.cancel()
        return run_checks(run_dir, device, probe, began)
    except (ImportError, OSError) as error:  # a broken torch is among what is looked for
        _print("torch", one_line(error), "install torch anew: pip install --force-reinstall torch")
    except Exception as error:
        _print("doctor", one_line(error), "a fault of dcdist: report it")
    finally:
        importing.cancel()
        probe.close()
        faulthandler.cancel_dump_traceback_later()
    return ExitCode.FAILURE


def _give_up_importing(probe: Probe) -> None:
    remedy = "is the environment on slow storage? Run this again (it may be cached now), or put it on a local disk"
    _print("torch", f"importing it and the rest did not end within {IMPORT_SECONDS:g} s", remedy)
    probe.close()
    os._exit(int(ExitCode.FAILURE))


def _print(name: str, finding: str, remedy: str) -> None:
    print("\n".join(Check(name, "FAIL", finding, remedy).lines()), flush=True)

"""`dcdist doctor` altogether: real processes, alone, together, and with a fault."""

from __future__ import annotations

import re
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from dcdist import doctor
from dcdist.doctor import examine
from dcdist.doctor.probe import PROBED
from dcdist.errors import ExitCode, UsageError
from dcdist.launch.base import JobSpec
from dcdist.launch.local import LocalLauncher
from tests.doctor.helpers import ROOT, free_port, leftovers, line_of, outcome, start

EXAMINE = """
import sys
from dcdist.doctor import examine
{before}
sys.exit(examine({run_dir!r}, {device!r}))
"""
NAMES = [
    "launcher",
    "versions",
    "torchvision",
    "faiss",
    "device",
    "open files",
    "shared memory",
    "memory",
    "signals",
    "process group",
    "cores",
    "GPUs",
]


def script(run_dir: Path | None, device: str = "cpu", before: str = "") -> str:
    return EXAMINE.format(run_dir=run_dir and str(run_dir), device=device, before=before)


WITHOUT_PROBE = """
import dcdist.doctor
class NoProbe:
    def __init__(self, device): pass
    def checks(self, seconds): return []
    def close(self): pass
dcdist.doctor.Probe = NoProbe
"""


def names(output: str) -> list[str]:
    lines = [line for line in output.splitlines()[:-1] if not line.startswith(" ")]
    return [line[6:19].strip() for line in lines]


def test_one_process(tmp_path: Path) -> None:
    code, output = outcome(start(script(tmp_path / "run"), OMP_NUM_THREADS=1))
    assert code == 0, output
    assert names(output) == [*NAMES, "run storage", "clocks"]
    last = re.fullmatch(r"\d+ ok, \d warn, 0 FAIL on 1 process of 1 machine, in (\S+) s", output.splitlines()[-1])
    assert last is not None
    assert float(last[1]) < 60
    assert list(tmp_path.iterdir()) == []


def test_faults_and_no_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(doctor, "Probe", lambda _: SimpleNamespace(checks=lambda _: [], close=lambda: None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").write_text("")
    assert examine(str(tmp_path / "file/run"), "cuda") is ExitCode.FAILURE
    output = capfd.readouterr().out
    assert line_of(output, "device").startswith("FAIL  device         torch sees no GPU")
    assert line_of(output, "run storage").startswith("FAIL")
    assert ", 2 FAIL on 1 process of 1 machine, in " in output.splitlines()[-1]
    assert examine(None, "cpu") is ExitCode.DONE
    output = capfd.readouterr().out
    assert names(output) == [*(name for name in NAMES if name not in PROBED), "clocks"]
    assert ", 0 FAIL on 1 process of 1 machine, in " in output.splitlines()[-1]


def test_two_processes_of_the_local_launcher(tmp_path: Path, capfd: Any) -> None:
    job = JobSpec((sys.executable, "-c", script(tmp_path / "run")), 2, threads_per_process=1)
    assert LocalLauncher().submit(job).wait() is ExitCode.DONE
    output, errors = capfd.readouterr()
    assert "Traceback" not in errors
    assert names(output) == [*NAMES, "same versions", "run storage", "clocks"]
    assert "rank 0 of 2, local rank 0 of 2" in line_of(output, "launcher")
    assert "2 processes (2 on " in line_of(output, "process group")
    assert line_of(output, "run storage").endswith("seen by all 2 processes")
    assert "2 processes within " in line_of(output, "clocks")
    assert re.search(r", 0 FAIL on 2 processes of 1 machine, in \S+ s$", output.splitlines()[-1])
    assert list(tmp_path.iterdir()) == []


def test_two_processes_of_which_one_finds_a_fault(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    place = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    quick = WITHOUT_PROBE + "from dcdist.doctor import run_storage\nrun_storage.LOOK_SECONDS = 0.3\n"
    few = quick + "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))"
    processes = [
        start(script(tmp_path / "a/run", before=quick), RANK=0, LOCAL_RANK=0, OMP_NUM_THREADS=1, **place),
        start(script(tmp_path / "b/run", before=few), RANK=1, LOCAL_RANK=1, OMP_NUM_THREADS=1, **place),
    ]
    (first_code, first), (second_code, second) = (outcome(process) for process in processes)
    assert (first_code, second_code, second) == (1, 1, "")
    lines = [line for line in first.splitlines() if line[6:].startswith("open files")]
    assert len(lines) == 2
    assert lines[0].startswith("ok")
    assert lines[1].startswith(f"warn  open files     rank 1 on {socket.gethostname()}: fewer than 1024")
    assert "does not see what rank 0 wrote" in line_of(first, "run storage")
    assert ", 1 FAIL on 2 processes of 1 machine" in first.splitlines()[-1]
    assert leftovers(tmp_path) == []


SHORT = WITHOUT_PROBE + "from dcdist.doctor import examination\nexamination.JOIN_SECONDS = 0.5"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_its_peer_says_what_it_can(rank: int, tmp_path: Path) -> None:
    place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    began = time.monotonic()
    code, output = outcome(start(script(tmp_path, before=SHORT), **place))
    assert time.monotonic() - began < 60
    assert code == 1
    where = f"rank 1 on {socket.gethostname()}: " if rank else ""
    line = next(line for line in output.splitlines() if line[6:].startswith("process group"))
    assert line.startswith(f"FAIL  process group  {where}{'nobody listens' if rank else 'waited 0.5 s'} at 127.0.0.1:")
    assert ("run storage" in output) == (rank == 0)  # what is well, another rank does not repeat
    assert list(tmp_path.iterdir()) == []


DIE = (
    WITHOUT_PROBE
    + "import os\nfrom dcdist.doctor import examination\nexamination.check_device = lambda *_: os._exit(9)"
)


def test_a_process_that_dies_is_noticed(tmp_path: Path) -> None:
    place = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = [
        start(script(tmp_path, before=WITHOUT_PROBE), RANK=0, LOCAL_RANK=0, **place),
        start(script(tmp_path, before=DIE), RANK=1, LOCAL_RANK=1, **place),
    ]
    (code, output), (dead, _) = (outcome(process) for process in processes)
    assert (code, dead) == (1, 9)
    assert line_of(output, "peers").startswith("FAIL  peers          lost while gathering what all found: PeerLost")
    assert "is another process of the job gone" in output
    assert line_of(output, "process group").startswith("ok")
    assert list(tmp_path.iterdir()) == []


def test_a_torch_that_does_not_import_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    code, output = outcome(start(script(None), PYTHONPATH=f"{tmp_path}:{ROOT}"))
    assert code == 1
    assert output.startswith("FAIL  torch          OSError: libcudart.so.13: cannot open shared object file\n")
    assert "remedy: install torch anew" in output


def test_an_import_without_end_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)")
    before = "import dcdist.doctor\ndcdist.doctor.IMPORT_SECONDS = 0.5"
    code, output = outcome(start(script(None, before=before), PYTHONPATH=f"{tmp_path}:{ROOT}"), 30)
    assert code == 1
    assert output.startswith("FAIL  torch          importing it and the rest did not end within 0.5 s\n")
    assert "put it on a local disk" in output


def test_a_library_that_stops_the_interpreter_is_ended(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import ctypes\nctypes.PyDLL(None).sleep(60)")  # holds the interpreter's lock
    before = "import dcdist.doctor\ndcdist.doctor.LAST_RESORT_SECONDS = 1.5"
    began = time.monotonic()
    process = start(script(None, before=before), PYTHONPATH=f"{tmp_path}:{ROOT}")
    children: list[psutil.Process] = []
    while not children:
        children = psutil.Process(process.pid).children()
        assert time.monotonic() - began < 30
    _, errors = process.communicate(timeout=50)
    assert time.monotonic() - began < 30
    assert process.returncode == 1
    assert "torch.py" in errors
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="--device tpu: use auto, cpu or cuda"):
        examine(None, "tpu")

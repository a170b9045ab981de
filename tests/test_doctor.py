"""`dcdist doctor`: each check where all is well and where it is not; processes, folders, ports and signals are real."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from dcdist import doctor
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.place import Place
from dcdist.doctor import examine, machine, native, run_storage, storage_trial, surroundings
from dcdist.doctor.cgroup import Room, cpu_quota, memory_room
from dcdist.doctor.check import Budget, Check, Problem, judge
from dcdist.doctor.clocks import check_clocks, storage_offset
from dcdist.doctor.group import check_all_reduce, meet
from dcdist.doctor.machine import (
    Facts,
    check_cores,
    check_device,
    check_gpus,
    check_same_versions,
    check_versions,
    look_around,
    ranks_text,
)
from dcdist.doctor.probe import PROBED, Probe
from dcdist.doctor.report import Findings, has_failed, merge, summary
from dcdist.doctor.run_storage import Scratch, check_storage, look
from dcdist.doctor.surroundings import (
    check_launcher,
    check_memory,
    check_open_files,
    check_shared_memory,
    check_signals,
)
from dcdist.errors import ExitCode, UsageError
from dcdist.launch.base import JobSpec
from dcdist.launch.local import LocalLauncher
from dcdist.storage import LocalStorage
from tests.availability import unavailable
from tests.distributed.processes import run_processes

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
ALONE = Place(0, 1, 0, 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(script: str, prepare: Callable[[], None] | None = None, **environment: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def outcome(process: subprocess.Popen[str], seconds: float = 90) -> tuple[int, str]:
    output, errors = process.communicate(timeout=seconds)
    assert "Traceback" not in errors, errors
    return process.returncode, output


def line_of(output: str, name: str) -> str:
    lines = [line for line in output.splitlines() if line[6:].startswith(f"{name} ")]
    assert len(lines) == 1, output
    return lines[0]


def leftovers(*folders: Path) -> list[str]:
    return [str(path) for folder in folders for path in folder.rglob("*dcdist-doctor*")]


# --- what two processes find together, asked once for all tests -------------------------------------------------------

CLOCK_OFFSETS = [0.0, -5.0, 100.0]


def checks_of_rank(collectives: Collectives, folder: Path) -> dict[str, list[Check]]:
    run_storage.LOOK_SECONDS = 1.0
    run_dirs = [
        [f"{folder}/a/run"] * 2,
        [f"{folder}/a/run", f"{folder}/b/run"],  # each sees a folder of its own, as on a disk of each machine
        [f"{folder}/file/run", f"{folder}/a/run"],
    ]

    def clocks(offset: float) -> Check:
        if not offset:
            time.sleep(2.5 * collectives.rank)  # a rank that comes late has no wrong clock
        return check_clocks(collectives, None, lambda: time.time() + offset * collectives.rank)

    return {
        "sums": [check_all_reduce(Collectives(collectives.rank, claimed)) for claimed in (2, 3)],
        "clocks": [clocks(offset) for offset in CLOCK_OFFSETS],
        "storage": [check_storage(of_ranks[collectives.rank], collectives, Budget(60)) for of_ranks in run_dirs],
    }


@pytest.fixture(scope="module")
def two_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for name in "ab":
        (folder / name).mkdir()
    (folder / "file").write_text("")
    return folder


@pytest.fixture(scope="module")
def of_two_processes(two_folders: Path) -> list[dict[str, list[Check]]]:
    return run_processes(checks_of_rank, 2, two_folders)


# --- checks in bounded time -------------------------------------------------------------------------------------------


def test_a_check_that_raises_fails_in_one_line() -> None:
    def raising() -> Check:
        raise ValueError("first line\n  second line")

    check = Budget(10).guard("name", 1, raising, "mend it")
    assert check == Check("name", "FAIL", "ValueError: first line second line", "mend it")
    assert check.lines() == ["FAIL  name           ValueError: first line second line", f"{'':<21}remedy: mend it"]
    assert Check("name", "ok", "fine").lines("rank 1: ") == ["ok    name           rank 1: fine"]


def test_a_check_that_hangs_fails_in_time() -> None:
    budget, event = Budget(10), threading.Event()

    def hanging() -> Check:
        event.wait(60)
        return Check("name", "ok", "")

    began = time.monotonic()
    check = budget.guard("name", 0.2, hanging, "mend it")
    assert time.monotonic() - began < 5
    assert (check.state, check.finding) == ("FAIL", "did not end within 0 s")
    assert budget.has_left_behind()
    event.set()
    ends = time.monotonic() + 10
    while budget.has_left_behind():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_without_time_nothing_is_tried() -> None:
    budget = Budget(100)
    assert budget.guard("name", 50, lambda: Check("name", "ok", "fine"), "").finding == "fine"
    budget.shorten(0)
    check = budget.guard("name", 50, lambda: pytest.fail("was called"), "mend it")
    assert (check.state, check.finding) == ("FAIL", "was not tried: the checks before it took all the time")


def test_several_problems_are_one_check() -> None:
    problems = [Problem("warn", "slow", "a"), Problem("FAIL", "wrong", "b"), Problem("warn", "old", "a")]
    assert judge("name", "1 GB", problems) == Check("name", "FAIL", "slow; wrong; old; 1 GB", "a; b")
    assert judge("name", "1 GB", []) == Check("name", "ok", "1 GB")


# --- torchvision and faiss, in a process of their own -----------------------------------------------------------------


def probed(monkeypatch: pytest.MonkeyPatch, folder: Path, seconds: float = 90) -> list[Check]:
    """What a probe finds that imports from this folder first."""
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    probe = Probe("cpu")
    try:
        return probe.checks(seconds)
    finally:
        probe.close()


def test_libraries_that_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torchvision, faiss = probed(monkeypatch, tmp_path)
    assert torchvision.name == "torchvision"
    assert torchvision.state == "ok"
    assert re.fullmatch(r"\S+, its operators load", torchvision.finding)
    assert faiss.name == "faiss"
    assert faiss.state == "ok"
    assert re.fullmatch(r"\S+, its search on the CPU agrees with torch", faiss.finding)


def test_a_torchvision_without_its_operators_and_no_faiss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    shutil.copytree(
        spec.submodule_search_locations[0], tmp_path / "torchvision", ignore=shutil.ignore_patterns("*.so*")
    )
    (tmp_path / "faiss.py").write_text("raise ModuleNotFoundError(\"No module named 'faiss'\", name='faiss')")
    torchvision, faiss = probed(monkeypatch, tmp_path)
    assert torchvision.state == "FAIL"
    assert "nms" in torchvision.finding
    assert "pip install --force-reinstall torch torchvision" in torchvision.remedy
    assert faiss.state == "warn"
    assert "is not installed" in faiss.finding
    assert "pip install 'dcdist[cpu]'" in faiss.remedy


def test_a_faiss_that_crashes_takes_only_the_probe_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "faiss.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    torchvision, faiss = probed(monkeypatch, tmp_path)
    assert torchvision.state == "ok"
    assert (faiss.state, faiss.finding) == ("FAIL", "crashed the process that tried it (SIGSEGV)")
    assert "libraries of different builds" in faiss.remedy


def test_a_library_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)")
    began = time.monotonic()
    torchvision, faiss = probed(monkeypatch, tmp_path, seconds=1)
    assert time.monotonic() - began < 20
    assert (torchvision.state, torchvision.finding) == ("FAIL", "did not end within 1 s")
    assert faiss.state == "FAIL"
    assert faiss.finding == "was not tried, for torchvision ended the process that tries it"


def test_a_library_that_does_not_import_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    torchvision, _ = probed(monkeypatch, tmp_path)
    assert torchvision.state == "FAIL"
    assert "exit code 1: ImportError: libcudart.so.13: cannot open shared object file" in torchvision.finding


class WrongIndex:
    """A flat index that finds the first others for every row."""

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def add(self, rows: Any) -> None:
        self.rows = rows

    def search(self, rows: Any, k: int) -> tuple[Any, Any]:
        assert rows.shape[1] == self.num_features
        return np.zeros((len(rows), k), np.float32), np.tile(np.arange(k), (len(rows), 1))


def test_a_faiss_that_finds_other_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(__version__="1.0", IndexFlatL2=WrongIndex))
    check = native.check_faiss("cpu")
    assert check.state == "FAIL"
    assert re.search(r"1.0 does not find torch's neighbours on the CPU: \d+ of 600 differ", check.finding)
    assert "pip install --force-reinstall" in check.remedy


def test_a_faiss_without_gpu_support_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    monkeypatch.delattr(faiss, "GpuIndexFlatL2", raising=False)
    check = native.check_faiss("cuda:0")
    assert check.state == "ok"
    assert "no GPU support (pip install 'dcdist[gpu]' has)" in check.finding


# --- versions, devices, cores -----------------------------------------------------------------------------------------


def facts(rank: int, **changes: Any) -> Facts:
    values: dict[str, Any] = {
        "rank": rank,
        "host": "a",
        "boot": "1",
        "local_world_size": 2,
        "versions": {"torch": "2.14"},
        "cores": frozenset(range(4)),
        "quota": None,
        "threads": 2,
        "gpu": None,
    }
    return Facts(**{**values, **changes})


def test_versions_are_named() -> None:
    found = look_around(ALONE, CPU).versions
    check = check_versions(found, 2.04)
    assert check.state == "ok"
    assert f"torch {torch.__version__}" in check.finding
    assert f"numpy {np.__version__}" in check.finding
    assert f"python {sys.version_info.major}.{sys.version_info.minor}" in check.finding
    assert check.finding.endswith("; imported in 2.0 s")
    slow = check_versions(found, 16)
    assert slow.state == "warn"
    assert "local disk" in slow.remedy


def test_other_versions_on_some_ranks() -> None:
    same = [facts(rank) for rank in range(3)]
    assert check_same_versions(same) == Check("same versions", "ok", "on all 3 processes")
    check = check_same_versions([*same, facts(3, versions={"torch": "2.11"}), facts(4, versions={})])
    assert check.state == "FAIL"
    assert check.finding == "torch differs: 2.14 on ranks 0-2, 2.11 on rank 3, none on rank 4"
    assert "one environment for all machines" in check.remedy


def test_gpus_of_two_kinds_are_a_warning() -> None:
    check = check_same_versions([facts(0, versions={"GPU": "H100"}), facts(1, versions={"GPU": "A100"})])
    assert (check.state, check.finding) == ("warn", "GPUs differ: H100 on rank 0, A100 on rank 1")
    assert "--constraint" in check.remedy


def test_ranks_are_shortened() -> None:
    assert ranks_text([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_wanted_and_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device, check = check_device("cuda", ALONE)
    assert device == CPU
    assert check.state == "FAIL"
    assert "torch sees no GPU: this machine or container has no NVIDIA driver" in check.finding
    assert "sbatch --gres=gpu:1" in check.remedy
    assert "--device cpu" in check.remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' hides all of them" in check_device("cuda", ALONE)[1].finding
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this torch is built without CUDA" in check_device("cuda", ALONE)[1].finding


@pytest.mark.usefixtures("no_gpu")
def test_a_cpu_is_fine_unless_the_machine_has_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not machine.has_nvidia_driver(tmp_path)
    (tmp_path / "0000:01:00.0").mkdir()
    assert machine.has_nvidia_driver(tmp_path)
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: False)
    assert check_device("auto", ALONE)[1].state == "ok"
    assert re.fullmatch("CPU, bf16 (native|emulated, so fp32 is the default)", check_device("auto", ALONE)[1].finding)
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: True)
    assert check_device("auto", ALONE)[1].state == "warn"
    assert check_device("cpu", ALONE)[1].state == "ok"


def test_more_processes_than_gpus() -> None:
    assert check_gpus([facts(0), facts(1)]) == Check("GPUs", "ok", "none is used")
    # By identity: two machines may both have a cuda:0, and SLURM shows each process its own as cuda:0.
    fine = [
        facts(0, gpu="GPU-1"),
        facts(1, gpu="GPU-2"),
        facts(2, gpu="GPU-1", host="b"),
        facts(3, gpu="GPU-1", boot="2"),
    ]
    assert check_gpus(fine) == Check("GPUs", "ok", "one a process")
    check = check_gpus([*fine, facts(4, gpu="GPU-2"), facts(5, gpu="GPU-2")])
    assert check.state == "FAIL"
    assert check.finding == "more processes than GPUs on a: ranks 1, 4-5 share one"
    assert check.remedy.startswith("start 2 a machine: srun --ntasks-per-node")
    check = check_gpus([*fine, facts(4), facts(5)])
    assert (check.state, check.finding) == ("FAIL", "ranks 4-5 have none, the others do")


def test_threads_that_fit_the_cores() -> None:
    check = check_cores([facts(0), facts(1), facts(2, host="b"), facts(3, host="b", threads=1)])
    assert check == Check("cores", "ok", "a: 4 for 2 x 2 threads, b: 4 for 2 x 1.5 threads")
    # Each process bound to cores of its own, as srun does it.
    bound = [facts(rank, cores=frozenset([2 * rank, 2 * rank + 1])) for rank in range(2)]
    assert check_cores(bound) == Check("cores", "ok", "a: 4 for 2 x 2 threads")


@pytest.mark.parametrize(
    ("changes", "finding", "remedy"),
    [
        ({"threads": 4}, "more threads than cores on a", "OMP_NUM_THREADS=2 and launch.threads_per_process=2"),
        ({"quota": 2.0}, "more threads than cores on a", "OMP_NUM_THREADS=1"),
        ({"cores": frozenset([0]), "threads": 1}, "fewer cores than processes on a", "--cpus-per-task"),
        ({"local_world_size": 1}, "2 processes run on a, the launcher says 1", "LOCAL_WORLD_SIZE must be"),
    ],
)
def test_too_many_threads(changes: dict[str, Any], finding: str, remedy: str) -> None:
    check = check_cores([facts(rank, **changes) for rank in range(2)])
    assert check.state == "warn"
    assert finding in check.finding
    assert remedy in check.remedy


def test_threads_and_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "7,2")
    assert look_around(ALONE, CPU).threads == 7
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert look_around(ALONE, CPU).threads == cores
    assert look_around(Place(0, 2 * cores, 0, 2 * cores), CPU).threads == 1
    own = look_around(ALONE, CPU)
    assert (own.host, own.cores, own.gpu) == (socket.gethostname(), frozenset(os.sched_getaffinity(0)), None)


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_limits_of_control_groups_version_2(tmp_path: Path) -> None:
    files = {
        "process": "0::/job/step\n",
        "mount/job/step/memory.max": "max\n",
        "mount/job/step/cpu.max": "max 100000\n",
        "mount/job/memory.max": "1000\n",
        "mount/job/memory.current": "900\n",
        "mount/job/memory.stat": "anon 700\ninactive_file 150\n",
        "mount/job/cpu.max": "150000 100000\n",
        "mount/memory.max": "5000\n",
    }
    write_files(tmp_path, files)
    assert memory_room(tmp_path / "process", tmp_path / "mount") == Room(1000, 250)
    assert cpu_quota(tmp_path / "process", tmp_path / "mount") == 1.5


def test_limits_of_control_groups_version_1(tmp_path: Path) -> None:
    files = {
        "process": "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n",
        "mount/memory/job/memory.limit_in_bytes": "1000\n",
        "mount/memory/job/memory.usage_in_bytes": "900\n",
        "mount/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "mount/cpu/job/cpu.cfs_quota_us": "-1\n",
        "mount/cpu/job/cpu.cfs_period_us": "100000\n",
    }
    write_files(tmp_path, files)
    assert memory_room(tmp_path / "process", tmp_path / "mount") == Room(1000, 100)
    assert cpu_quota(tmp_path / "process", tmp_path / "mount") is None
    (tmp_path / "mount/cpu/job/cpu.cfs_quota_us").write_text("400000\n")
    assert cpu_quota(tmp_path / "process", tmp_path / "mount") == 4
    assert memory_room(tmp_path / "nothing", tmp_path) is None


# --- the process group ------------------------------------------------------------------------------------------------


@pytest.fixture
def meeting_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    def set_meeting(host: str, port: object) -> None:
        monkeypatch.setenv("MASTER_ADDR", host)
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)

    return set_meeting


def failed_meeting(place: Place) -> Check:
    collectives, check = meet(place, Budget(20), 1.0)
    assert collectives is None
    assert check.name == "process group"
    assert check.state == "FAIL"
    return check


def test_one_process_meets_nobody() -> None:
    collectives, check = meet(ALONE, Budget(20), 1.0)
    assert collectives is not None
    assert collectives.world_size == 1
    assert check == Check("process group", "ok", "one process, nobody to meet")


def test_a_port_that_nobody_listens_at(meeting_at: Callable[[str, object], None]) -> None:
    port = free_port()
    meeting_at("127.0.0.1", port)
    began = time.monotonic()
    check = failed_meeting(Place(1, 2, 0, 1))
    assert time.monotonic() - began < 15
    assert f"nobody listens at 127.0.0.1:{port} (MASTER_ADDR:MASTER_PORT), tried for 1 s" in check.finding
    assert "is rank 0 started, MASTER_ADDR the address of its machine" in check.remedy


def test_peers_that_do_not_come(meeting_at: Callable[[str, object], None]) -> None:
    port = free_port()
    meeting_at("127.0.0.1", port)
    check = failed_meeting(Place(0, 2, 0, 2))
    assert check.finding == f"waited 1 s at 127.0.0.1:{port} (MASTER_ADDR:MASTER_PORT): 1 of 2 processes came"
    assert "are all 2 started (WORLD_SIZE)" in check.remedy


def test_a_port_that_is_taken(meeting_at: Callable[[str, object], None]) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        meeting_at("127.0.0.1", other.getsockname()[1])
        check = failed_meeting(Place(0, 2, 0, 2))
    assert "another program listens at 127.0.0.1" in check.finding
    assert "choose another MASTER_PORT" in check.remedy


@pytest.mark.parametrize(
    ("host", "port", "finding", "remedy"),
    [
        (
            "no-such-host.invalid",
            29500,
            "MASTER_ADDR=no-such-host.invalid does not resolve on ",
            "every machine resolves",
        ),
        ("127.0.0.1", "first", "MASTER_PORT='first' is no port", "set it to one from 1024"),
        ("192.0.2.1", 29500, "MASTER_ADDR=192.0.2.1 is no address of ", "must be the machine of rank 0"),
    ],
)
def test_a_meeting_point_that_is_none(
    host: str, port: object, finding: str, remedy: str, meeting_at: Callable[[str, object], None]
) -> None:
    meeting_at(host, port)
    check = failed_meeting(Place(0, 2, 0, 2))
    assert finding in check.finding
    assert remedy in check.remedy


def test_a_meeting_point_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    check = failed_meeting(Place(0, 2, 0, 2))
    assert "2 processes need MASTER_ADDR" in check.finding
    assert "start by torchrun or" in check.remedy
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert failed_meeting(Place(0, 2, 0, 2)).remedy.startswith(
        "before srun: export MASTER_ADDR=$(scontrol show hostnames"
    )


MEET = """
import os, sys, time
import torch
from dcdist.distributed.place import read_place
from dcdist.doctor.check import Budget
from dcdist.doctor.group import meet
place, folder = read_place(), sys.path[0]
open(os.environ["FOLDER"] + f"/{place.rank}", "w").close()
while len(os.listdir(os.environ["FOLDER"])) < 2:
    time.sleep(0.01)
print("\\n".join(meet(place, Budget(30), 2.0)[1].lines()), flush=True)
os._exit(0)
"""


def test_a_wrong_world_size(tmp_path: Path) -> None:
    place = {"WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "TORCH_CPP_LOG_LEVEL": "FATAL"}
    processes = [start(MEET, RANK=rank, FOLDER=tmp_path, **place) for rank in range(2)]
    first, second = (outcome(process)[1] for process in processes)
    assert "2 of 3 processes came" in first
    assert "are all 3 started (WORLD_SIZE)" in first
    assert "not all 3 processes came to 127.0.0.1" in second or "nobody listens at" in second
    assert "remedy: " in second


def test_sums_over_two_processes(of_two_processes: list[dict[str, list[Check]]]) -> None:
    host = re.escape(socket.gethostname())
    for checks in of_two_processes:
        right, wrong = checks["sums"]
        assert right.state == "ok"
        assert re.fullmatch(rf"2 processes \(2 on {host}\), all-reduce by gloo \S+ ms", right.finding)
        assert (wrong.state, wrong.finding) == ("FAIL", "a sum over all ranks is 3, not 6")
        assert "the same WORLD_SIZE" in wrong.remedy


# --- where the run is to lie ------------------------------------------------------------------------------------------


def storage_check(run_dir: object) -> Check:
    return check_storage(str(run_dir), Collectives(), Budget(60))


def test_storage_that_works_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("mine")
    for run_dir in (tmp_path / "run", tmp_path / "run/not/there/yet", f"file://{tmp_path}/run"):
        check = storage_check(run_dir)
        assert check.state == "ok", check
        pattern = r": \S+ MB/s, a small file in \S+ ms; exclusive creation, listing, commit and reading back work, "
        assert re.search(pattern + r"\d+\.\d GB free$", check.finding)
        assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.yaml"]
    assert (tmp_path / "run/config.yaml").read_text() == "mine"


def test_a_relative_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_check("runs/new").state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_storage_behind_a_url(s3_server: str) -> None:
    import fsspec

    assert s3_server
    check = storage_check("s3://bucket/runs/mine")
    assert check.state == "ok", check
    assert "free" not in check.finding
    assert fsspec.filesystem("s3").find("bucket") == []
    missing = storage_check("s3://no-such-bucket/run")
    assert missing.state == "FAIL"
    assert "bucket" in missing.finding
    assert "does the bucket exist, and are the credentials" in missing.remedy


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system in memory of this size."""
    mounted = []

    def mount_at(size: str, *options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "none", folder]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0:
            unavailable(f"mounting a file system is not permitted: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount_at
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_folder(mount: Callable[..., Path]) -> None:
    check = storage_check(mount("1m", "ro") / "run")
    assert check.state == "FAIL"
    assert "Read-only file system" in check.finding
    assert "mounted read-only: give another run.dir" in check.remedy


def test_a_full_folder(mount: Callable[..., Path]) -> None:
    folder = mount("1m")
    check = storage_check(folder)
    assert check.state == "FAIL"
    assert "No space left on device" in check.finding
    assert check.remedy == "make room there, or give another run.dir"
    assert list(folder.iterdir()) == []


def test_a_nearly_full_folder(mount: Callable[..., Path]) -> None:
    check = storage_check(mount("100m"))
    assert check.state == "warn"
    assert check.finding.startswith("less than 1 GB is free; ")
    assert "make room: a run keeps at least two checkpoints" in check.remedy


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = storage_check(tmp_path / "file/run")
    assert check.state == "FAIL"
    assert "Not a directory" in check.finding or "NotADirectory" in check.finding
    assert "a part of the path is a file" in check.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        unavailable("only root may become somebody else")
    script = f"""
import os
from dcdist.distributed.collectives import Collectives
from dcdist.doctor.check import Budget
from dcdist.doctor.run_storage import check_storage
os.seteuid(65534)
print("\\n".join(check_storage({str(tmp_path / "run")!r}, Collectives(), Budget(30)).lines()))
"""
    for folder in (tmp_path, *tmp_path.parents):
        assert folder.stat().st_uid == 0
    tmp_path.chmod(0o755)
    code, output = outcome(start(script))
    assert code == 0
    assert "Permission denied" in output
    assert "remedy: give a run.dir that this user may write to" in output


def test_creation_that_is_not_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "create_exclusive", LocalStorage.write_bytes)
    check = storage_check(tmp_path)
    assert check.state == "FAIL"
    assert "a second exclusive creation of a file was not refused" in check.finding
    assert "give run.dir on other storage" in check.remedy
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intact = LocalStorage.open_for_reading

    def damaged(self: LocalStorage, path: str) -> Any:
        (self.local_path(path)).write_bytes(b"\0" * self.size(path))
        return intact(self, path)

    monkeypatch.setattr(LocalStorage, "open_for_reading", damaged)
    check = storage_check(tmp_path)
    assert check.state == "FAIL"
    assert "has changed: its SHA-256" in check.finding
    assert list(tmp_path.iterdir()) == []


def test_slow_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_trial, "MIN_BYTES_PER_SECOND", 1e18)
    check = storage_check(tmp_path)
    assert check.state == "warn"
    assert re.match(r"a checkpoint of 500 MB takes \d+ s; ", check.finding)
    assert "sbatch --signal=USR2@SECONDS" in check.remedy


def test_a_folder_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "remove_tree", lambda *_: None)
    check = storage_check(tmp_path)
    assert check.state == "FAIL"
    assert "cannot be removed" in check.finding
    assert "remove it by hand" in check.remedy


SILENT_SERVER = """
import os
from dcdist.distributed.collectives import Collectives
from dcdist.doctor.check import Budget
from dcdist.doctor.run_storage import check_storage
import s3fs
print("\\n".join(check_storage("s3://bucket/run", Collectives(), Budget(30), write_seconds=1.5).lines()), flush=True)
os._exit(0)
"""


def test_storage_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        script = start(
            SILENT_SERVER,
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent.getsockname()[1]}",
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing",
            AWS_DEFAULT_REGION="us-east-1",
        )
        _, output = outcome(script, 60)
    assert output.startswith("FAIL  run storage    s3://bucket/run: did not end within 2 s")
    assert "remedy: does the storage answer?" in output


def test_storage_of_two_processes(of_two_processes: list[dict[str, list[Check]]], two_folders: Path) -> None:
    shared, local, broken = of_two_processes[0]["storage"]
    assert shared.state == "ok", shared
    assert shared.finding.endswith(", seen by all 2 processes")
    host, run_dir = socket.gethostname(), f"{two_folders}/b/run"
    assert local.state == "FAIL"
    assert f"rank 1 (on {host}; rank 0 is on {host}) does not see what rank 0 wrote under {run_dir}" in local.finding
    assert "a file system that all machines mount" in local.remedy
    assert broken.state == "FAIL"
    assert "a part of the path is a file" in broken.remedy
    assert [check.state for check in of_two_processes[1]["storage"]] == ["ok", "FAIL", "FAIL"]
    assert sorted(path.name for path in two_folders.rglob("*")) == ["a", "b", "file"]


def test_what_another_rank_finds_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_storage, "LOOK_SECONDS", 0.2)
    scratch = Scratch("scratch", levels=1)
    run_dir = f"{tmp_path}/run"
    missing = look(run_dir, scratch, 1)
    assert missing is not None
    assert missing.finding == f"does not see what rank 0 wrote under {run_dir}: is it local to each machine?"
    assert list(tmp_path.iterdir()) == []
    write_files(tmp_path, {"scratch/seen-by-all": "seen-by-all"})
    assert look(run_dir, scratch, 1) is None
    assert (tmp_path / "scratch/ranks/1").exists()
    write_files(tmp_path, {"scratch/seen-by-all": "old"})
    changed = look(run_dir, scratch, 1)
    assert changed is not None
    assert "reads other bytes than rank 0 wrote" in changed.finding
    write_files(tmp_path, {"scratch/seen-by-all": "seen-by-all"})
    monkeypatch.setattr(LocalStorage, "create_exclusive", LocalStorage.write_bytes)
    taken = look(run_dir, scratch, 1)
    assert taken is not None
    assert "could create a file that rank 0 has created" in taken.finding
    assert "s3://bucket/folder" in taken.remedy


# --- signals ----------------------------------------------------------------------------------------------------------


def test_signals_arrive_and_handlers_are_put_back() -> None:
    def handler(*_: object) -> None:
        pytest.fail("reached the handler from before")

    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    before = {number: signal.signal(number, handler) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        check = check_signals()
        assert [signal.getsignal(number) for number in numbers] == [handler] * 3
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    assert check == Check("signals", "ok", "SIGUSR2 and SIGTERM set the flag of a run")


SIGNALS = """
import signal
from dcdist.doctor.surroundings import check_signals
before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
print("\\n".join(check_signals().lines()))
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
assert not signal.sigpending()
"""


def test_a_blocked_signal() -> None:
    process = start(SIGNALS, lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) and None)
    code, output = outcome(process)
    assert code == 0
    assert output.startswith(
        "FAIL  signals        SIGTERM blocked since the start: never delivered; SIGUSR2 set the flag"
    )
    assert "remedy: whatever starts dcdist blocks them" in output


def test_an_ignored_signal() -> None:
    process = start(SIGNALS, lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN) and None)
    code, output = outcome(process)
    assert code == 0
    assert output.startswith("warn  signals        SIGUSR2 ignored since the start: lost until a run has installed")
    assert "SIGUSR2 and SIGTERM set the flag of a run" in output
    assert "remedy: take `trap '' ...` out of the script" in output


def test_a_signal_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_DELIVERY_SECONDS", 0.01)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    check = check_signals()
    assert (check.state, check.finding) == ("FAIL", "SIGUSR2 and SIGTERM sent to this process did not set the flag")
    assert "another library took them over" in check.remedy


def test_signals_cannot_be_tried_beside_the_main_thread() -> None:
    assert Budget(10).call(5, check_signals).state == "warn"


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_clocks_of_two_processes(of_two_processes: list[dict[str, list[Check]]]) -> None:
    for checks in (of_rank["clocks"] for of_rank in of_two_processes):
        assert [check.state for check in checks] == ["ok", "warn", "FAIL"]
        assert re.fullmatch(r"2 processes within \d\.\d{3} s", checks[0].finding)
        for check, offset in zip(checks[1:], CLOCK_OFFSETS[1:], strict=True):
            off = re.search(r"a clock is (\S+) s off, that of rank 1 against rank 0", check.finding)
            assert off is not None
            assert float(off[1]) == pytest.approx(abs(offset), abs=1.5)
            assert "set the clocks by NTP" in check.remedy


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (5, "warn"), (-100, "FAIL")])
def test_the_clock_of_the_storage(seconds: float, state: str, tmp_path: Path) -> None:
    check = check_clocks(Collectives(), tmp_path, lambda: time.time() + seconds)
    assert check.state == state
    assert ("that of the storage of" in check.finding) == (state != "ok")
    assert storage_offset(tmp_path, lambda: time.time() + seconds) == pytest.approx(-seconds, abs=1)
    assert list(tmp_path.iterdir()) == []


def test_one_clock() -> None:
    check = check_clocks(Collectives(), None)
    assert check == Check("clocks", "ok", "one process and no path of storage: nothing to compare")


# --- limits -----------------------------------------------------------------------------------------------------------


def test_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1023, before[1]))
        few = check_open_files()
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        enough = check_open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (few.state, few.finding) == ("warn", "fewer than 1024 are allowed; up to 1023")
    assert re.fullmatch(r"ulimit -n \d+ before the start", few.remedy)
    assert enough == Check("open files", "ok", "up to 1024")


def test_shared_memory(tmp_path: Path, mount: Callable[..., Path]) -> None:
    missing = check_shared_memory(tmp_path / "shm")
    assert (missing.state, missing.finding) == ("warn", f"there is no {tmp_path}/shm")
    docker = check_shared_memory(mount("64m"))
    assert docker.state == "warn"
    assert docker.finding.startswith("too little for the batches")
    assert "--shm-size" in docker.remedy
    larger = mount("70m")
    assert check_shared_memory(larger).state == "ok"
    assert check_shared_memory(larger).finding == f"{larger}: 70 MiB free of 70 MiB"
    (larger / "left").write_bytes(bytes(7 << 20))
    assert check_shared_memory(larger).state == "warn"
    assert check_shared_memory(larger).remedy == f"remove what dead processes left in {larger}"


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "memory_room", lambda: None)
    assert re.fullmatch(r"\S+ GiB free of \S+ GiB on the machine", check_memory().finding)
    monkeypatch.setattr(surroundings, "memory_room", lambda: Room(2 << 30, 100 << 20))
    check = check_memory()
    assert check.state == "warn"
    assert check.finding.endswith("100 MiB of 2.0 GiB that this job may take")
    assert "sbatch --mem" in check.remedy


# --- launcher ---------------------------------------------------------------------------------------------------------

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
}
FOURTH, SIXTH = "rank 3 of 4, local rank 1 of 2", "rank 5 of 8, local rank 1 of 4"


@pytest.mark.parametrize(
    ("environment", "finding"),
    [
        ({}, "none: rank 0 of 1, local rank 0 of 1"),
        ({"NODE_RANK": "1", "NUM_NODES": "2"}, "none, machine 1 by NODE_RANK: rank 0 of 1, local rank 0 of 1"),
        (TORCHRUN, f"RANK and WORLD_SIZE in the environment: {FOURTH}"),
        (TORCHRUN | {"NODE_RANK": "1"}, f"RANK and WORLD_SIZE in the environment, machine 1 by NODE_RANK: {FOURTH}"),
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"}, f"torchrun: {FOURTH}"),
        (TORCHRUN | {"RAY_JOB_ID": "x"}, f"Ray: {FOURTH}"),
        (SLURM, f"SLURM step 7.0: {SIXTH}"),
    ],
)
def test_launchers_are_recognised(environment: dict[str, str], finding: str) -> None:
    place, check = check_launcher(environment)
    assert check == Check("launcher", "ok", finding)
    assert f"rank {place.rank} of {place.world_size}, local rank {place.local_rank} of" in finding


def test_a_launcher_that_makes_no_sense() -> None:
    place, check = check_launcher(TORCHRUN | {"RANK": "4"})
    assert place == ALONE
    assert check.state == "FAIL"
    assert "RANK='4'" in check.finding
    assert "start it by srun, torchrun or" in check.remedy


def test_a_batch_script_without_srun() -> None:
    _, check = check_launcher({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"})
    assert check.state == "warn"
    assert check.finding.startswith("this process is alone in a SLURM job of 8 tasks")
    assert check.remedy == "start it by srun: srun dcdist doctor"


def test_torchrun_that_keeps_the_signal_of_slurm() -> None:
    environment = TORCHRUN | {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT"}
    assert check_launcher(environment)[1].state == "ok"
    check = check_launcher(environment | {"SLURM_JOB_ID": "7"})[1]
    assert check.state == "warn"
    assert check.remedy == "torchrun --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"
    handled = {"SLURM_JOB_ID": "7", "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGUSR2"}
    assert check_launcher(environment | handled)[1].state == "ok"


# --- the report -------------------------------------------------------------------------------------------------------


def test_what_is_wrong_elsewhere_is_added() -> None:
    fine, wrong = Check("a", "ok", "fine"), Check("a", "FAIL", "wrong", "mend")
    everywhere, odd = Check("b", "warn", "slow", "faster"), Check("b", "warn", "slower", "faster")
    processes = [
        Findings(facts(0), (fine, everywhere)),
        Findings(facts(1), (wrong, everywhere)),
        Findings(facts(2, host="b"), (wrong, everywhere)),
    ]
    assert merge(processes) == [fine, Check("a", "FAIL", "rank 1-2 on a, b: wrong", "mend"), everywhere]
    processes[0] = Findings(facts(0), (wrong, odd))
    assert merge(processes) == [
        wrong,
        Check("b", "warn", "rank 0 on a: slower", "faster"),
        Check("b", "warn", "rank 1-2 on a, b: slow", "faster"),
    ]
    assert has_failed([fine, wrong])
    assert not has_failed([fine, everywhere])
    assert summary([fine, wrong, odd], 3, 2, 1.26) == "1 ok, 1 warn, 1 FAIL on 3 processes of 2 machines, in 1.3 s"


# --- altogether -------------------------------------------------------------------------------------------------------

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
    few = WITHOUT_PROBE + "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))"
    processes = [
        start(script(tmp_path / "a/run", before=WITHOUT_PROBE), RANK=0, LOCAL_RANK=0, OMP_NUM_THREADS=1, **place),
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


SHORT = WITHOUT_PROBE + "from dcdist.doctor import examination\nexamination.JOIN_SECONDS = 1.0"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_its_peer_says_what_it_can(rank: int, tmp_path: Path) -> None:
    place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    began = time.monotonic()
    code, output = outcome(start(script(tmp_path, before=SHORT), **place))
    assert time.monotonic() - began < 60
    assert code == 1
    where = f"rank 1 on {socket.gethostname()}: " if rank else ""
    line = next(line for line in output.splitlines() if line[6:].startswith("process group"))
    assert line.startswith(f"FAIL  process group  {where}{'nobody listens' if rank else 'waited 1 s'} at 127.0.0.1:")
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
    before = "import dcdist.doctor\ndcdist.doctor.LAST_RESORT_SECONDS = 3.0"
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

"""What the probe's process runs: the native libraries on tiny data, against torch. One line of JSON for each check."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dcdist.doctor.check import Check, one_line
from dcdist.doctor.probe import PROBED

_TORCHVISION = "torch and torchvision are of different builds: pip install --force-reinstall torch torchvision together"
_FAISS = "install faiss anew: pip install --force-reinstall 'dcdist[cpu]' (with GPUs 'dcdist[gpu]')"
_PR_SET_PDEATHSIG = 1
_TOLERANCE = 1e-3  # of squared distances that are about 30, from sums of float32


def check_torchvision(device: str) -> Check:  # noqa: ARG001
    """Whether the operators load: a torchvision of another build than torch's only fails where one is called."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        return Check("torchvision", "FAIL", f"nms of a tiny example is wrong: {kept} instead of [0, 2]", _TORCHVISION)
    return Check("torchvision", "ok", f"{torchvision.__version__}, its operators load")


def check_faiss(device: str) -> Check:
    """Whether faiss finds the neighbours that torch finds: on the CPU, and where it can on this process's GPU."""
    import torch

    try:
        import faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        return Check(
            "faiss",
            "warn",
            "is not installed: clustering.engine=faiss is refused, auto takes torch",
            "pip install 'dcdist[cpu]', with GPUs pip install 'dcdist[gpu]'",
        )
    generator = torch.Generator().manual_seed(0)
    rows, others = torch.randn(200, 16, generator=generator), torch.randn(100, 16, generator=generator)
    distances, indices = torch.cdist(rows.double(), others.double()).square().topk(3, largest=False)
    version = str(faiss.__version__)
    index: Any = faiss.IndexFlatL2(rows.shape[1])
    index.add(others.numpy())
    difference = _difference(index.search(rows.numpy(), 3), distances, indices)
    if difference:
        return Check("faiss", "FAIL", f"{version} does not find torch's neighbours on the CPU: {difference}", _FAISS)
    gpu = torch.device(device)
    if gpu.type == "cpu":
        return Check("faiss", "ok", f"{version}, its search on the CPU agrees with torch")
    if not hasattr(faiss, "GpuIndexFlatL2"):
        why = "it has no GPU support (pip install 'dcdist[gpu]' has), clustering.engine=auto takes torch there"
        return Check("faiss", "ok", f"{version}, its search on the CPU agrees with torch; {why}")
    config = faiss.GpuIndexFlatConfig()
    config.device = gpu.index or 0
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(1 << 24)  # by default 1.5 GiB
    index = faiss.GpuIndexFlatL2(resources, rows.shape[1], config)
    index.add(others.numpy())
    difference = _difference(index.search(rows.numpy(), 3), distances, indices)
    if difference:
        finding = f"{version} does not find torch's neighbours on {gpu}: {difference}"
        return Check("faiss", "FAIL", finding, f"{_FAISS}; until then clustering.engine=torch")
    return Check("faiss", "ok", f"{version}, its searches on the CPU and on {gpu} agree with torch")


def _difference(found: tuple[Any, Any], distances: Any, indices: Any) -> str:
    """How faiss' distances and indices differ from torch's, "" where they do not."""
    import torch

    error = float((torch.as_tensor(found[0]).double() - distances).abs().max())
    num_others = int((torch.as_tensor(found[1]) != indices).sum())
    # Written so that a NaN is a difference. Random points have no neighbours equally far.
    if error <= _TOLERANCE and not num_others:
        return ""
    return f"{num_others} of {indices.numel()} differ, squared distances by up to {error:.3g}"


CHECKS: dict[str, tuple[Callable[[str], Check], str]] = {
    "torchvision": (check_torchvision, _TORCHVISION),
    "faiss": (check_faiss, _FAISS),
}


def main() -> None:
    """Prints each check as soon as it is known: the next may end the process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever started this may be killed while it hangs
    from dcdist.devices import choose_device
    from dcdist.distributed.place import Place, read_place
    from dcdist.errors import UsageError

    try:
        place = read_place()
    except UsageError:  # is said by the check of the launcher
        place = Place(0, 1, 0, 1)
    try:
        device = str(choose_device(sys.argv[1], place))
    except UsageError:  # is said by the check of the device
        device = "cpu"
    for name in PROBED:
        function, remedy = CHECKS[name]
        try:
            check = function(device)
        except Exception as error:
            check = Check(name, "FAIL", one_line(error), remedy)
        print(json.dumps(asdict(check)), flush=True)


if __name__ == "__main__":
    main()

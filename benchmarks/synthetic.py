"""The speed of the bare network: forward passes and training on one constant random batch, nothing loaded.

Plain torch around the network that is measured: what dcdist adds to this is what the epoch benchmark shows. Run as a
module it is one process of as many as the environment describes, and prints a line of JSON on rank 0.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from dcdist.distributed.place import read_place
from dcdist.distributed.process_group import join
from dcdist.models.alexnet import alexnet
from dcdist.models.backbone import Backbone
from dcdist.models.numerics import Numerics
from dcdist.models.sobel import Sobel

WARM_UP = 2


class Classifier(nn.Module):
    """A backbone with a linear layer over its features."""

    def __init__(self, backbone: Backbone, num_clusters: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, num_clusters)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(functional.relu(self.backbone(images)))
        return logits


def random_batch(size: int, image_size: int, numerics: Numerics) -> torch.Tensor:
    """Float [B, 3, S, S] as the network gets it."""
    images = torch.randn(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    layout = torch.channels_last if numerics.channels_last else torch.contiguous_format
    return images.to(numerics.device).to(memory_format=layout)


def timed(action: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of one call, the mean of some after the first have warmed up."""
    for _ in range(WARM_UP):
        action()
    wait_for(device)
    started = time.perf_counter()
    for _ in range(repeats):
        action()
    wait_for(device)
    return (time.perf_counter() - started) / repeats


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_seconds(model: Classifier, images: torch.Tensor, repeats: int, numerics: Numerics) -> float:
    """Of one forward pass in evaluation mode."""
    model.eval()

    @torch.no_grad()
    def forward() -> None:
        with numerics.autocast():
            model.backbone(images)

    return timed(forward, repeats, numerics.device)


def step_seconds(
    model: Classifier,
    microbatch: torch.Tensor,
    num_microbatches: int,
    num_clusters: int,
    repeats: int,
    numerics: Numerics,
) -> float:
    """Of one optimisation step over so many microbatches, gradients all-reduced where there are several processes."""
    model.train()
    targets = (torch.arange(len(microbatch)) % num_clusters).to(numerics.device)
    network: nn.Module = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-5, fused=True)

    def backward() -> None:
        with numerics.autocast():
            logits = network(microbatch)
        (functional.cross_entropy(logits.float(), targets) / num_microbatches).backward()

    def step() -> None:
        if isinstance(network, DistributedDataParallel):
            with network.no_sync():
                for _ in range(num_microbatches - 1):
                    backward()
            backward()
        else:
            for _ in range(num_microbatches):
                backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, repeats, numerics.device)


def measure(
    numerics: Numerics, batch_size: int, microbatch_size: int, num_microbatches: int, num_clusters: int, repeats: int
) -> dict[str, float]:
    """Images per second of one process: forward in batches of `batch_size`, training in steps of microbatches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier(alexnet(Sobel(), 2, 224), num_clusters)
    numerics.place(model)
    images = random_batch(max(batch_size, microbatch_size), 224, numerics)
    forward = forward_seconds(model, images[:batch_size], repeats, numerics)
    step = step_seconds(model, images[:microbatch_size], num_microbatches, num_clusters, repeats, numerics)
    return {"features": batch_size / forward, "training": num_microbatches * microbatch_size / step}


def main() -> None:
    from dcdist.devices import keep_freed_memory

    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("threads", "batch-size", "microbatch-size", "num-microbatches", "num-clusters", "repeats"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--json", type=Path, help="where rank 0 writes the figures, too")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    numerics = Numerics(torch.device("cpu"), arguments.precision == "bf16", arguments.channels_last)
    collectives = join(read_place(), numerics.device, 600, 600)
    speeds = measure(
        numerics,
        arguments.batch_size,
        arguments.microbatch_size,
        arguments.num_microbatches,
        arguments.num_clusters,
        arguments.repeats,
    )
    # Every process waits for the slowest in training; forward passes are summed over the processes.
    total = collectives.all_reduce_sum(torch.tensor(list(speeds.values()), dtype=torch.float64))
    if collectives.is_main:
        text = json.dumps(dict(zip(speeds, total.tolist(), strict=True)))
        print(text, flush=True)
        if arguments.json:
            arguments.json.write_text(text)
    if dist.is_initialized():
        dist.destroy_process_group()
        os._exit(0)  # gloo's threads were seen to abort the interpreter's end


if __name__ == "__main__":
    main()

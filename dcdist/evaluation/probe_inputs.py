"""What probes are trained on: pooled maps of several frozen networks, from one pass over the images or from a cache.

Shapes: N images, B of a batch on all ranks, b of them on this one, C channels, g x g positions of a pooled map.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from dcdist.data.loader import Batch, BatchLoader, Request
from dcdist.data.preparation import prepare
from dcdist.data.source import ImageSource
from dcdist.data.transforms import View
from dcdist.distributed.collectives import Collectives
from dcdist.distributed.seeding import derive_seed, numpy_generator
from dcdist.errors import UsageError
from dcdist.evaluation.probes import Pools, pooling
from dcdist.features import contiguous_range
from dcdist.models.backbone import OUTPUT, Backbone
from dcdist.models.numerics import Numerics

_IMAGES_A_FORWARD = {"cpu": 32, "cuda": 256}  # maps of early layers are large
_CHUNK = 32  # images whose random numbers are drawn together; ranks share a batch by chunks

Layer = tuple[str, str]  # a network's name and a layer's
Pooled = Mapping[Layer, torch.Tensor]  # of each [b, C, g, g] or [b, D]


class ProbeBatch(NamedTuple):
    """This rank's part of a batch."""

    pooled: Pooled
    labels: torch.Tensor  # [b] int64
    rows: slice  # where it lies in the batch of all ranks
    batch_size: int  # B


class ProbeInputs(Protocol):
    """Epochs of training batches."""

    @property
    def num_images(self) -> int:
        """Of an epoch."""
        ...

    def epoch(self, seed: int, epoch: int, batch_size: int) -> Iterator[ProbeBatch]:
        """The images in random order; the last batch may be smaller. Equally many on every rank."""
        ...


class PooledMaps:
    """Several frozen networks, and how the maps of their layers are pooled.

    Args:
        networks: by name, placed on the device.
        layers: of each of them.
        kind: of network, as the config names it.
        side: of the images, in pixels.
        pools: which published poolings.
        numerics: how they compute.
    """

    def __init__(
        self,
        networks: Mapping[str, Backbone],
        layers: Sequence[str],
        kind: str,
        side: int,
        pools: Pools,
        numerics: Numerics,
    ) -> None:
        self._networks = networks
        self._layers = layers
        self.device = numerics.device
        self._numerics = numerics
        self._pools: dict[Layer, nn.Module] = {}
        black = torch.zeros(1, 3, side, side, device=numerics.device)
        for name, network in networks.items():
            network.eval()
            with torch.no_grad():
                maps = network.layers(black, layers)
            for layer, found in maps.items():
                _require_map(layer, tuple(found.shape))
                self._pools[name, layer] = pooling(kind, layer, tuple(found.shape), pools)
        self.shapes: dict[Layer, tuple[int, ...]] = {key: tuple(rows.shape[1:]) for key, rows in self(black).items()}

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Pooled:
        """Normalised images [b, 3, S, S] -> what is left of each layer."""
        pieces: list[Pooled] = []
        for part in torch.split(images, _IMAGES_A_FORWARD[self.device.type]):
            pooled: dict[Layer, torch.Tensor] = {}
            with self._numerics.autocast():
                for name, network in self._networks.items():
                    maps = network.layers(part, self._layers)
                    pooled |= {(name, layer): self._pools[name, layer](found) for layer, found in maps.items()}
            pieces.append(pooled)
        return {layer: torch.cat([piece[layer] for piece in pieces]) for layer in pieces[0]}

    def digest(self, layer: Layer) -> str:
        """What a layer's values depend on, beside the images: weights, pooling, precision."""
        digest = hashlib.blake2b(f"{layer[1]} {self._pools[layer]} {self._numerics.bfloat16}".encode(), digest_size=16)
        for name, tensor in self._networks[layer[0]].state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


@dataclass(frozen=True)
class FromImages:
    """Every epoch a pass over the images, each seen by a view that may be random."""

    maps: PooledMaps
    source: ImageSource
    sample_ids: np.ndarray[Any, Any]  # of the images that have a label
    view: View
    loader: BatchLoader
    collectives: Collectives

    @property
    def num_images(self) -> int:
        return len(self.sample_ids)

    def epoch(self, seed: int, epoch: int, batch_size: int) -> Iterator[ProbeBatch]:
        """See ProbeInputs; images that do not decode are left out of their batch."""
        assert self.source.labels is not None
        order = _order(self.sample_ids, seed, epoch)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        shares = [self._own_chunks(len(batch)) for batch in batches]
        requests = (
            Request(
                batch[chunk * _CHUNK : (chunk + 1) * _CHUNK],
                self.source.labels[batch[chunk * _CHUNK : (chunk + 1) * _CHUNK]].astype(np.int64),
                (self.view,),
                derive_seed(seed, "probes", epoch, number, chunk),
            )
            for number, (batch, share) in enumerate(zip(batches, shares, strict=True))
            for chunk in share
        )
        loaded = self.loader.load(self.source, requests)
        for batch, share in zip(batches, shares, strict=True):
            rows = slice(share.start * _CHUNK, min(share.stop * _CHUNK, len(batch)))
            yield self._batch(list(islice(loaded, len(share))), rows, len(batch))

    def _own_chunks(self, num_rows: int) -> range:
        return contiguous_range(-(-num_rows // _CHUNK), self.collectives.rank, self.collectives.world_size)

    def _batch(self, chunks: Sequence[Batch], rows: slice, batch_size: int) -> ProbeBatch:
        """Undecodable images keep their place, with the label -1."""
        device = self.maps.device
        seen = [prepare(chunk.to(device), (self.view,)).views[0] for chunk in chunks]
        side = self.view.size
        images = torch.cat(seen) if seen else torch.empty(0, 3, side, side, device=device)
        labels = [torch.where(chunk.decoded, chunk.targets, -1) for chunk in chunks if chunk.targets is not None]
        every = torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64)
        return ProbeBatch(self.maps(images), every.to(device), rows, batch_size)


@dataclass(frozen=True)
class FromCache:
    """Epochs over pooled maps that were computed once, of the images as one view shows them, and lie on disk."""

    stored: Mapping[Layer, np.ndarray[Any, Any]]  # half precision [n, C, g, g], memory-mapped
    labels: np.ndarray[Any, Any]  # [n]
    device: torch.device
    collectives: Collectives

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def epoch(self, seed: int, epoch: int, batch_size: int) -> Iterator[ProbeBatch]:
        """See ProbeInputs."""
        order = _order(np.arange(len(self.labels)), seed, epoch)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            share = contiguous_range(len(batch), self.collectives.rank, self.collectives.world_size)
            own = batch[share.start : share.stop]
            pooled = {layer: torch.from_numpy(rows[own]).to(self.device) for layer, rows in self.stored.items()}
            labels = torch.from_numpy(self.labels[own].astype(np.int64)).to(self.device)
            yield ProbeBatch(pooled, labels, slice(share.start, share.stop), len(batch))


def cached(
    folder: Path,
    maps: PooledMaps,
    source: ImageSource,
    sample_ids: np.ndarray[Any, Any],
    view: View,
    loader: BatchLoader,
    collectives: Collectives,
    batch_size: int,
) -> FromCache:
    """Computes what the folder does not hold yet, each rank its share, and opens it. Collective.

    The folder is shared by the ranks. Files are named by a digest of everything that their content depends on, and
    count once their description (.json) is there.
    """
    assert source.labels is not None
    images = hashlib.blake2b(f"{source.fingerprint()} {view}".encode() + sample_ids.tobytes(), digest_size=16)
    names = {
        layer: hashlib.blake2b(f"{images.hexdigest()} {maps.digest(layer)}".encode(), digest_size=12).hexdigest()
        for layer in maps.shapes
    }
    missing = {layer: name for layer, name in names.items() if not (folder / f"{name}.json").exists()}
    # Another evaluation may be writing the same rows: each has files of its own until they are whole.
    missing, unique = collectives.broadcast_object((missing, uuid.uuid4().hex))
    if missing:
        building = {layer: folder / f"{name}.{unique}.npy" for layer, name in missing.items()}
        try:
            collectives.on_main(lambda: _allocate(building, maps.shapes, len(sample_ids)))
            files = {layer: np.load(path, mmap_mode="r+") for layer, path in building.items()}
            own = contiguous_range(len(sample_ids), collectives.rank, collectives.world_size)
            requests = (
                Request(sample_ids[start : min(start + batch_size, own.stop)], None, (view,), seed=0)
                for start in range(own.start, own.stop, batch_size)
            )
            end = own.start
            for batch in loader.load(source, requests):
                start, end = end, end + len(batch.sample_ids)
                (seen,) = prepare(batch.to(maps.device), (view,)).views
                pooled = maps(seen)
                for layer, file in files.items():
                    file[start:end] = pooled[layer].half().cpu().numpy()
            for file in files.values():
                file.flush()
            failed = [
                sample_id for ids in collectives.all_gather_objects(sorted(source.undecodable)) for sample_id in ids
            ]
            collectives.on_main(
                lambda: _publish(building, {key: folder / name for key, name in missing.items()}, failed)
            )
        finally:  # what an evaluation that fails or is interrupted leaves may be large
            for path in building.values():
                path.unlink(missing_ok=True)
    stored = {layer: np.load(folder / f"{name}.npy", mmap_mode="r") for layer, name in names.items()}
    description = json.loads((folder / f"{next(iter(names.values()))}.json").read_text())
    labels = np.where(np.isin(sample_ids, description["undecodable"]), -1, source.labels[sample_ids])
    return FromCache(stored, labels, maps.device, collectives)


def _require_map(layer: str, shape: tuple[int, ...]) -> None:
    if layer != OUTPUT and not (len(shape) == 4 and shape[2] == shape[3]):
        raise UsageError(
            f"layer {layer!r} of this network gives {list(shape)} for an image, which is no map [images, channels, "
            f"height, width] that could be pooled: choose others by --layers, as --layers {OUTPUT}"
        )


def _allocate(building: Mapping[Layer, Path], shapes: Mapping[Layer, tuple[int, ...]], num_rows: int) -> None:
    for layer, path in building.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, "w+", np.float16, (num_rows, *shapes[layer]))
        with path.open("r+b") as file:  # a full disk is an error now, not a bus error when the pages are written
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _publish(building: Mapping[Layer, Path], places: Mapping[Layer, Path], undecodable: Iterable[int]) -> None:
    for (network, layer), place in places.items():
        building[network, layer].rename(f"{place}.npy")
        content = {"network": network, "layer": layer, "undecodable": [int(number) for number in undecodable]}
        Path(f"{place}.json").write_text(json.dumps(content))


def _order(sample_ids: np.ndarray[Any, Any], seed: int, epoch: int) -> np.ndarray[Any, Any]:
    return numpy_generator(seed, "probes", epoch).permutation(sample_ids)

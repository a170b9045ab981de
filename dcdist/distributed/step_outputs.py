"""The outputs of a whole step on every rank, as if one process had computed them, with gradients that flow back.

Shapes: b rows of a microbatch, n of this rank, B of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dcdist.distributed.collectives import Collectives


def gather_outputs(outputs: Sequence[Any], collectives: Collectives) -> Any:
    """Outputs of this rank's microbatches -> those of the step, rows in the order of ranks and microbatches.

    Every rank then computes the same loss of the same tensors. Collective.

    Args:
        outputs: of each microbatch the same nesting of NamedTuples, tuples, lists and mappings of tensors [b, ...].
        collectives: joins the ranks.
    """

    def gather(*parts: torch.Tensor) -> torch.Tensor:
        rows = torch.cat(parts) if len(parts) > 1 else parts[0]
        if collectives.world_size == 1:
            return rows
        if rows.requires_grad:
            gathered: torch.Tensor = _Gather.apply(rows, collectives)
            return gathered
        return collectives.all_gather_rows(rows.contiguous())

    return _map_tensors(gather, outputs)


def detached(outputs: Any) -> Any:
    """The same outputs without their graph."""
    return _map_tensors(lambda tensor: tensor.detach(), [outputs])


def backward_of_zeros(outputs: Any) -> None:
    """A backward pass through all that the outputs were computed by, with gradients of zeros."""
    tensors: list[torch.Tensor] = []

    def collect(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.requires_grad:
            tensors.append(tensor)
        return tensor

    _map_tensors(collect, [outputs])
    torch.autograd.backward(tensors, [torch.zeros_like(tensor) for tensor in tensors])


def _map_tensors(function: Callable[..., torch.Tensor], parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return function(*parts)
    if isinstance(first, Mapping):
        return {key: _map_tensors(function, [part[key] for part in parts]) for key in first}
    values = [_map_tensors(function, list(group)) for group in zip(*parts, strict=True)]
    return type(first)(*values) if hasattr(first, "_fields") else type(first)(values)


class _Gather(torch.autograd.Function):
    """All ranks' rows; the gradient of this rank's rows, summed over the ranks.

    All ranks compute the same loss of the gathered rows, so each has the same gradient of them: the sum over the ranks
    needs no communication. DistributedDataParallel then averages over the ranks what they make of it, which leaves the
    gradient of the one loss, for the layers before the gathering as for those after it.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, collectives: Collectives) -> torch.Tensor:
        counts = collectives.row_counts(rows)
        ctx.start, ctx.count = sum(counts[: collectives.rank]), len(rows)
        ctx.world_size = collectives.world_size
        return collectives.all_gather_rows(rows.detach().contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient[ctx.start : ctx.start + ctx.count] * ctx.world_size, None

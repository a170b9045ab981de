"""Which keys make a run the run it is, and what a resume may change."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dcdist.config.load import validate
from dcdist.config.schema import HORIZON, ExperimentConfig, kind_of
from dcdist.errors import UsageError

_AUTO = "auto"


def flatten(values: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """{("train", "batch_size"): 256, ...}: nested mappings as paths of keys; stages by their names."""
    if path == ("stages",):
        values = {entry["name"]: entry for entry in values}
    if not isinstance(values, dict):
        return {path: values}
    flat: dict[tuple[str, ...], Any] = {}
    for name, value in values.items():
        flat |= flatten(value, (*path, name))
    return flat


def _kind(path: tuple[str, ...]) -> str:
    return kind_of(path[2:] if path[0] == "stages" else path)


def identity_values(config: ExperimentConfig) -> dict[str, Any]:
    """The identity keys of a resolved config, dotted, with their values."""
    flat = flatten(config.model_dump(mode="json"))
    return {".".join(path): value for path, value in flat.items() if _kind(path) == "identity"}


def identity_digest(config: ExperimentConfig, fingerprint: str) -> str:
    """A digest of everything that decides what is trained: the identity keys and the data's fingerprint."""
    text = json.dumps([identity_values(config), fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def resolve_autos(config: ExperimentConfig, *, has_bfloat16: bool) -> ExperimentConfig:
    """Replaces every identity key that is "auto" by the value that this hardware and the other keys give it."""
    values = config.model_dump(mode="json")
    for holder in (values, *values["stages"]):
        train = holder.get("train", {})
        batch_size = train.get("batch_size", values["train"]["batch_size"])
        if train.get("microbatch_size") == _AUTO:
            train["microbatch_size"] = _microbatch_size(batch_size)
        if train.get("precision") == _AUTO:
            train["precision"] = "bf16" if has_bfloat16 else "fp32"
        if train.get("channels_last") == _AUTO:
            train["channels_last"] = train.get("precision", values["train"]["precision"]) == "bf16"
    return validate(values, "the resolved config")


def _microbatch_size(batch_size: int) -> int:
    # As many as eight microbatches, for up to eight processes, of at least 32 samples for batch normalisation's sake.
    for num_microbatches in (8, 4, 2):
        if batch_size % num_microbatches == 0 and batch_size // num_microbatches >= 32:
            return batch_size // num_microbatches
    return batch_size


def resume_config(given: ExperimentConfig, saved: ExperimentConfig) -> ExperimentConfig:
    """The config that a run goes on with: `given`, with the saved values of keys that it leaves "auto".

    Raises:
        UsageError: an identity key differs, or a horizon shrinks; names each key with both values.
    """
    saved_flat = flatten(saved.model_dump(mode="json"))
    values = _keep_autos(given.model_dump(mode="json"), saved_flat, ())
    config = validate(values, "the config")
    given_flat = flatten(config.model_dump(mode="json"))
    problems = []
    for path in sorted(set(saved_flat) | set(given_flat)):
        before, now = saved_flat.get(path), given_flat.get(path)
        kind, name = _kind(path), ".".join(path)
        if kind == "identity" and before != now:
            problems.append(f"{name} is {now!r}, the run has {before!r}")
        elif kind == HORIZON and before is not None and (now is None or now < before):
            problems.append(f"{name} is {now!r}, less than the run's {before!r}: it may only grow")
    if problems:
        raise UsageError(
            f"{config.run.dir} was started with another config and cannot go on with this one: "
            + "; ".join(problems)
            + ". Set them back, or give a new run.dir."
        )
    return config


def _keep_autos(values: Any, saved: dict[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    if path == ("stages",):
        return [_keep_autos(entry, saved, (*path, entry["name"])) for entry in values]
    if isinstance(values, dict):
        return {name: _keep_autos(value, saved, (*path, name)) for name, value in values.items()}
    return saved[path] if values == _AUTO and path in saved and _kind(path) == "identity" else values

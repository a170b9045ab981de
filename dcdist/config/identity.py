"""Which keys make a run the run it is, and what a resume may change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from dcdist.config.load import validate
from dcdist.config.schema import ExperimentConfig, kind_of
from dcdist.config.sections import HORIZON
from dcdist.errors import UsageError

_AUTO = "auto"

KeyPath = tuple[str, ...]
Flat = dict[KeyPath, Any]


def flatten(config: ExperimentConfig) -> Flat:
    """{("train", "batch_size"): 256, ...}: every key of a config by its path.

    Of stages: ("stages",) gives their names in order, ("stages", name, ...) every key of one, its own or the top's.
    """
    values = config.model_dump(mode="json")
    flat: Flat = {("stages",): [entry["name"] for entry in values.pop("stages")]}
    for stage in config.resolved_stages() if config.stages else ():
        flat |= _flatten(stage.model_dump(mode="json"), ("stages", stage.name))
    return flat | _flatten(values, ())


def _flatten(values: Any, path: KeyPath) -> Flat:
    if not isinstance(values, dict):
        return {path: values}
    flat: Flat = {}
    for name, value in values.items():
        flat |= _flatten(value, (*path, name))
    return flat


def _flatten_with_parts(config: ExperimentConfig) -> Flat:
    """As `flatten`, with the parts of joint methods by name, too.

    ("joint", "parts") gives their names in order, ("joint", "parts", name, ...) every key that a part can have, its own
    or the stage's. With stages it is these that have them, whether or not the list stands at the top.
    """
    flat = flatten(config)
    flat["joint", "parts"] = [entry["name"] for entry in config.joint.parts]
    for stage in config.resolved_stages():
        path = ("stages", stage.name) if config.stages else ()
        flat[*path, "joint", "parts"] = [entry["name"] for entry in stage.joint.parts]
        for part, weight in stage.resolved_parts():
            values = part.model_dump(mode="json", exclude={"name", "train", "readout", "joint"})
            flat |= _flatten({**values, "weight": weight}, (*path, "joint", "parts", part.name))
    return flat


def _split(path: KeyPath) -> tuple[KeyPath, KeyPath, KeyPath]:
    """A path's stage, the part in it, and the key: of what is not in a stage, or in no part, the first ones are ()."""
    stage, key = (path[:2], path[2:]) if path[:1] == ("stages",) else ((), path)
    part, key = (key[:3], key[3:]) if key[:2] == ("joint", "parts") and len(key) > 3 else ((), key)
    return stage, part, key


def _kind(path: KeyPath) -> str:
    return kind_of(_split(path)[-1])


def _holders(path: KeyPath) -> Iterator[KeyPath]:
    """The same key where a part or a stage has it from, unless it sets it itself."""
    stage, part, key = _split(path)
    if part:
        yield (*stage, *key)
    if stage:
        yield (*part, *key)
        yield key


def identity_values(config: ExperimentConfig) -> dict[str, Any]:
    """The identity keys of a resolved config, dotted, with their values."""
    return {".".join(path): value for path, value in _flatten_with_parts(config).items() if _kind(path) == "identity"}


def identity_digest(config: ExperimentConfig, fingerprint: str) -> str:
    """A digest of everything that decides what is trained: the identity keys and the data's fingerprint."""
    text = json.dumps([identity_values(config), fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def resolve_autos(config: ExperimentConfig, *, has_bfloat16: bool) -> ExperimentConfig:
    """Replaces every key of `train` that is "auto" by the value that this hardware and the other keys give it."""
    values = _with_autos_of_stages(config)
    for holder in (values, *values["stages"]):
        train = holder.get("train", {})
        if train.get("microbatch_size") == _AUTO:
            train["microbatch_size"] = _microbatch_size(train.get("batch_size", values["train"]["batch_size"]))
        if train.get("precision") == _AUTO:
            train["precision"] = "bf16" if has_bfloat16 else "fp32"
        if train.get("channels_last") == _AUTO:
            train["channels_last"] = train.get("precision", values["train"]["precision"]) == "bf16"
    return validate(values, "the resolved config")


def _with_autos_of_stages(config: ExperimentConfig) -> dict[str, Any]:
    # A stage that sets what an automatic value derives from has an automatic value of its own.
    values: dict[str, Any] = config.model_dump(mode="json")
    top = values["train"]
    for train in [entry["train"] for entry in values["stages"] if "train" in entry]:
        for source, derived in (("batch_size", "microbatch_size"), ("precision", "channels_last")):
            if source in train and top[derived] == _AUTO:
                train.setdefault(derived, _AUTO)
    return values


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
    saved_flat = _flatten_with_parts(saved)
    config = validate(_keep_autos(_with_autos_of_stages(given), saved_flat, ()), "the config")
    given_flat = _flatten_with_parts(config)
    problems = []
    for path in sorted(set(saved_flat) & set(given_flat)):  # ("stages",) is in both, and names stages that are not
        problem = _problem(path, given_flat, saved_flat)
        if problem and all(problem != _problem(holder, given_flat, saved_flat) for holder in _holders(path)):
            problems.append(f"{'.'.join(path)} {problem}")
    if problems:
        raise UsageError(
            f"{config.run.dir} was started with another config and cannot go on with this one: "
            + "; ".join(problems)
            + ". Set them back, or give a new run.dir."
        )
    return config


def grown_stages(given: ExperimentConfig, saved: ExperimentConfig) -> list[str]:
    """The names of the stages that are to be longer than in the saved config."""
    before = {stage.name: stage.train.num_epochs for stage in saved.resolved_stages()}
    return [stage.name for stage in given.resolved_stages() if stage.train.num_epochs > before[stage.name]]


def _problem(path: KeyPath, given: Flat, saved: Flat) -> str:
    now, before, kind = given.get(path), saved.get(path), _kind(path)
    if kind == "identity" and now != before:
        return f"is {now!r}, the run has {before!r}"
    if kind == HORIZON and now < before:  # type: ignore[operator]
        return f"is {now!r}, less than the run's {before!r}: it may only grow"
    return ""


def _keep_autos(values: Any, saved: Flat, path: KeyPath) -> Any:
    if path == ("stages",):
        return [_keep_autos(entry, saved, (*path, entry["name"])) for entry in values]
    if isinstance(values, dict):
        return {name: _keep_autos(value, saved, (*path, name)) for name, value in values.items()}
    return saved[path] if values == _AUTO and path in saved and _kind(path) == "identity" else values

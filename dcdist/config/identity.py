"""Which keys make a run the run it is, and what a resume may change."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dcdist.config.load import validate
from dcdist.config.schema import ExperimentConfig, kind_of
from dcdist.config.sections import HORIZON
from dcdist.errors import UsageError

_AUTO = "auto"


def flatten(config: ExperimentConfig) -> dict[tuple[str, ...], Any]:
    """{("train", "batch_size"): 256, ...}: every key of a config by its path.

    Of stages: ("stages",) gives their names in order, ("stages", name, ...) every key of one, its own or the top's.
    """
    values = config.model_dump(mode="json")
    flat: dict[tuple[str, ...], Any] = {("stages",): [entry["name"] for entry in values.pop("stages")]}
    for stage in config.resolved_stages() if config.stages else ():
        flat |= _flatten(stage.model_dump(mode="json"), ("stages", stage.name))
    return flat | _flatten(values, ())


def _flatten(values: Any, path: tuple[str, ...]) -> dict[tuple[str, ...], Any]:
    if not isinstance(values, dict):
        return {path: values}
    flat: dict[tuple[str, ...], Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, (*path, name))
    return flat


def _kind(path: tuple[str, ...]) -> str:
    return kind_of(path[2:] if path[:1] == ("stages",) else path)


def identity_values(config: ExperimentConfig) -> dict[str, Any]:
    """The identity keys of a resolved config, dotted, with their values."""
    return {".".join(path): value for path, value in flatten(config).items() if _kind(path) == "identity"}


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
    saved_flat = flatten(saved)
    config = validate(_keep_autos(_with_autos_of_stages(given), saved_flat, ()), "the config")
    given_flat = flatten(config)
    problems = []
    for path in sorted(set(saved_flat) & set(given_flat)):  # ("stages",) is in both, and names stages that are not
        problem = _problem(path, given_flat, saved_flat)
        has_it_from_the_top = path[0] == "stages" and problem == _problem(path[2:], given_flat, saved_flat)
        if problem and not has_it_from_the_top:
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


def _problem(path: tuple[str, ...], given: dict[tuple[str, ...], Any], saved: dict[tuple[str, ...], Any]) -> str:
    now, before, kind = given.get(path), saved.get(path), _kind(path)
    if kind == "identity" and now != before:
        return f"is {now!r}, the run has {before!r}"
    if kind == HORIZON and now < before:  # type: ignore[operator]
        return f"is {now!r}, less than the run's {before!r}: it may only grow"
    return ""


def _keep_autos(values: Any, saved: dict[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    if path == ("stages",):
        return [_keep_autos(entry, saved, (*path, entry["name"])) for entry in values]
    if isinstance(values, dict):
        return {name: _keep_autos(value, saved, (*path, name)) for name, value in values.items()}
    return saved[path] if values == _AUTO and path in saved and _kind(path) == "identity" else values

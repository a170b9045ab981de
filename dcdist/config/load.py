"""From a YAML file and `a.b=value` overrides to an ExperimentConfig; errors name the key and the nearest known one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from pydantic import BaseModel, ValidationError

from dcdist.config.schema import ExperimentConfig, PartWeight, StageConfig, merge
from dcdist.errors import UsageError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats (1e-4 is a number, which YAML 1.1 takes for a string), no dates and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML text. Raises UsageError naming `origin` where it does not parse."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{origin} is not valid YAML: {error}") from error


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Reads an experiment file, follows its `extends`, applies overrides, checks every key.

    Raises:
        UsageError: a file that is missing or no mapping, an unknown key (with the nearest known one), a value of the
            wrong type or range, an override that every stage hides.
    """
    values = _read_with_bases(Path(path), ())
    _check_stages(values, str(path))
    for override in overrides:
        values = _apply_override(values, override)
    return validate(values, str(path))


def validate(values: dict[str, Any], origin: str) -> ExperimentConfig:
    """Checks a plain mapping against the schema. Raises UsageError that lists everything wrong in it."""
    _check_stages(values, origin)
    problems = [*_unknown_keys(values, ExperimentConfig)]
    problems += _unknown_keys_of_parts(values, "")
    for index, entry in enumerate(values.get("stages") or ()):
        written = f"stages.{entry.get('name', index)}."
        problems += [*_unknown_keys(entry, StageConfig, written=written), *_unknown_keys_of_parts(entry, written)]
    if not problems:
        try:
            config = ExperimentConfig.model_validate(values)
        except ValidationError as error:
            problems += _describe(error)
        else:
            problems += _stage_problems(config)
    if problems:
        raise UsageError(f"{origin}: " + "\n".join(problems))
    return config


def _unknown_keys_of_parts(holder: dict[str, Any], written: str) -> Iterator[str]:
    joint = holder.get("joint")
    parts = joint.get("parts") if isinstance(joint, dict) else None
    for index, part in enumerate(parts if isinstance(parts, list | tuple) else ()):
        if isinstance(part, dict):
            rest = {name: value for name, value in part.items() if name not in PartWeight.model_fields}
            yield from _unknown_keys(rest, StageConfig, written=f"{written}joint.parts.{part.get('name', index)}.")


def _check_stages(values: dict[str, Any], origin: str) -> None:
    stages = values.get("stages") or []
    if not isinstance(stages, list | tuple) or not all(isinstance(entry, dict) for entry in stages):
        raise UsageError(f"{origin}: stages is a list of mappings, each with a name, not {stages!r}")


def _stage_problems(config: ExperimentConfig) -> Iterator[str]:
    for entry in config.stages or ({"name": config.method},):
        name = f"stages.{entry['name']}" if config.stages else "joint.parts"
        try:
            config.resolved_stage(entry).resolved_parts()
        except ValidationError as error:
            yield from (f"{name}: {problem}" for problem in _describe(error))


def _describe(error: ValidationError) -> Iterator[str]:
    # A value of a union is reported once for each alternative: gathered here into one line a key.
    alternatives: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for problem in error.errors(include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "value_error" and isinstance(problem["input"], BaseModel | dict):
            yield message  # of a whole section: it names its keys itself
            continue
        # Beside keys and positions a location holds the names of the alternatives.
        name = ".".join(str(part) for part in problem["loc"] if isinstance(part, int) or part in _NAMES)
        alternatives.setdefault(name, []).append(message)
        inputs[name] = problem["input"]
    for name, messages in alternatives.items():
        value = "" if isinstance(inputs[name], BaseModel | dict) else f"={inputs[name]!r}"
        yield f"{name}{value}: {' or '.join(dict.fromkeys(messages))}"


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise UsageError(f"{path} extends itself: " + " -> ".join(str(p) for p in (*seen, path)))
    if not path.is_file():
        beside = {p.name: p.name for p in sorted(path.parent.glob("*.yaml"))}
        raise UsageError(f"config {path} does not exist or is no file{_did_you_mean(path.name, beside)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not valid YAML: it is no text in UTF-8 ({error})") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UsageError(
            f"{path} holds a {type(values).__name__}; expected a mapping of sections (run, data, train, ...)"
        )
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UsageError(f"{path}: extends={base!r} is no path of one config, as in extends: base.yaml")
    return merge(_read_with_bases(path.parent / base, (*seen, path)), values)


def _apply_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UsageError(f"override {override!r} is not of the form section.key=value, as in train.num_epochs=10")
    value = parse_yaml(text, f"override {override!r}") if text else None
    path = name.split(".")
    stages = values.get("stages") or []
    if path[0] == "stages" and len(path) > 2:
        return {**values, "stages": _override_entry(stages, "stages", path[1], path[2:], value)}
    change = _nested(path, value)
    if stages and all(_hides(entry, change) for entry in stages):
        instead = " or ".join(f"stages.{entry.get('name')}.{name}" for entry in stages)
        raise UsageError(f"override {override!r} would change nothing: every stage sets {name} itself; use {instead}")
    return _override(values, path, value)


def _override(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    if path[:2] == ["joint", "parts"] and len(path) > 3:
        joint = values.get("joint") or {}
        parts = _override_entry(joint.get("parts") or [], "joint.parts", path[2], path[3:], value)
        return {**values, "joint": {**joint, "parts": parts}}
    return merge(values, _nested(path, value))


def _override_entry(
    entries: Sequence[dict[str, Any]], where: str, name: str, path: list[str], value: Any
) -> list[dict[str, Any]]:
    """The named list with one of its entries, by name or position, changed."""
    for index, entry in enumerate(entries):
        if name in (str(index), entry.get("name")):
            return [*entries[:index], _override(entry, path, value), *entries[index + 1 :]]
    names = ", ".join(str(entry.get("name")) for entry in entries) or "none"
    raise UsageError(f"{where}.{name} does not exist; the config's {where} are: {names}")


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def _hides(entry: Any, change: Any) -> bool:
    """Whether a stage sets every key of the change itself."""
    if not isinstance(change, dict):
        return True
    return isinstance(entry, dict) and all(name in entry and _hides(entry[name], change[name]) for name in change)


def _unknown_keys(values: Any, section: type[BaseModel], home: str = "", written: str = "") -> Iterator[str]:
    """A line for each key that the section lacks: `home` is its place in the schema, `written` that in the file."""
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        field = section.model_fields.get(name)
        if field is not None:
            if _is_section(field.annotation):
                yield from _unknown_keys(value, field.annotation, f"{home}{name}.", f"{written or home}{name}.")
        elif section is StageConfig and name in ExperimentConfig.model_fields:
            yield f"unknown key {written}{name}: it belongs to the top level, not inside a stage"
        else:
            yield f"unknown key {written or home}{name}{_nearest(str(name), section, home)}"


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def known_keys(section: type[BaseModel] = ExperimentConfig, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted, sections included."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if _is_section(field.annotation):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


_NAMES = {key.rsplit(".", 1)[-1] for key in [*known_keys(), *known_keys(StageConfig), *known_keys(PartWeight)]}


def _nearest(name: str, section: type[BaseModel], home: str) -> str:
    siblings = {key: home + key for key in section.model_fields}
    # The right key in the wrong section, or in no section at all; of several the first in the schema.
    elsewhere = {key.rsplit(".", 1)[-1]: key for key in reversed(known_keys())}
    return _did_you_mean(name, siblings, elsewhere)


def _did_you_mean(name: str, here: Mapping[str, str], elsewhere: Mapping[str, str] | None = None) -> str:
    for known in (here, elsewhere or {}):
        for close in difflib.get_close_matches(name, known, n=1):
            return f"; did you mean {known[close]}?"
    return f"; known here: {', '.join(here)}" if here else ""


def to_yaml(config: ExperimentConfig) -> str:
    """The resolved config as YAML, which load_config reads back to an equal one."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

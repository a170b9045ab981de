"""From a YAML file and `a.b=value` overrides to an ExperimentConfig, with errors that name the key and the nearest one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dcdist.config.schema import ExperimentConfig, StageConfig, merge
from dcdist.errors import UsageError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats (1e-4 is a number, which YAML 1.1 takes for a string) and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


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
    for override in overrides:
        values = _apply_override(values, override)
    return validate(values, str(path))


def validate(values: dict[str, Any], origin: str) -> ExperimentConfig:
    """Checks a plain mapping against the schema. Raises UsageError that lists everything wrong in it."""
    problems = [*_unknown_keys(values, ExperimentConfig, ())]
    stages = values.get("stages") or []
    if not isinstance(stages, list | tuple) or not all(isinstance(entry, dict) for entry in stages):
        raise UsageError(f"{origin}: stages is a list of mappings, each with a name, not {stages!r}")
    for index, entry in enumerate(stages):
        problems += _unknown_keys(entry, StageConfig, ("stages", str(index)))
    if problems:
        raise UsageError(f"{origin}: " + "\n".join(problems))
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{origin}: " + "\n".join(_describe(error))) from None


def _describe(error: ValidationError) -> Iterator[str]:
    # A value of a union is reported once for each alternative: gathered here into one line a key.
    alternatives: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        known = ".".join(part for part in location if part.replace("_", "").isalnum() and part.islower() and part not in _TAGS)
        alternatives.setdefault(known, []).append(problem["msg"].removeprefix("Value error, "))
        inputs[known] = problem["input"]
    for name, messages in alternatives.items():
        if not name or isinstance(inputs[name], BaseModel | dict):
            yield f"{name}: {messages[0]}" if name else messages[0]
        else:
            yield f"{name}={inputs[name]!r}: {' or '.join(dict.fromkeys(messages))}"


_TAGS = {"int", "float", "bool", "str", "none", "constrained-int", "constrained-float", "literal"}


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise UsageError(f"{path} extends itself: " + " -> ".join(str(p) for p in (*seen, path)))
    if not path.is_file():
        raise UsageError(f"config {path} does not exist" + _nearest(path.name, [p.name for p in path.parent.glob("*.yaml")]))
    values = parse_yaml(path.read_text(), str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a {type(values).__name__}; expected a mapping of sections (run, data, train, ...)")
    base = values.pop("extends", None)
    return merge(_read_with_bases(path.parent / base, (*seen, path)), values) if base else values


def _apply_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UsageError(f"override {override!r} is not of the form section.key=value, as in train.num_epochs=10")
    value = parse_yaml(text, f"override {override!r}") if text else None
    path = name.split(".")
    if path[0] == "stages" and len(path) > 2:
        return _override_stage(values, path, value)
    hiding = [entry for entry in values.get("stages") or [] if _holds(entry, path)]
    if hiding and len(hiding) == len(values["stages"]):
        instead = " or ".join(f"stages.{entry.get('name')}.{name}" for entry in hiding)
        raise UsageError(f"override {override!r} would change nothing: every stage sets {name} itself; use {instead}")
    return merge(values, _nested(path, value))


def _override_stage(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    stages = list(values.get("stages") or [])
    for index, entry in enumerate(stages):
        if path[1] in (str(index), entry.get("name")):
            stages[index] = merge(entry, _nested(path[2:], value))
            return {**values, "stages": stages}
    names = ", ".join(str(entry.get("name")) for entry in stages) or "none"
    raise UsageError(f"stages.{path[1]} does not exist; the config's stages are: {names}")


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def _holds(entry: dict[str, Any], path: list[str]) -> bool:
    value: Any = entry
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def _unknown_keys(values: Any, section: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        path = (*prefix, str(name))
        field = section.model_fields.get(name)
        if field is None:
            where = "inside a stage" if section is StageConfig and name in ExperimentConfig.model_fields else ""
            hint = f": it belongs to the top level, not {where}" if where else _nearest(name, known_keys(), ".".join(prefix))
            yield f"unknown key {'.'.join(path)}{hint}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _unknown_keys(value, field.annotation, path)


def known_keys(section: type[BaseModel] = ExperimentConfig, prefix: str = "") -> list[str]:
    """Every key of the schema, dotted, sections included."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _nearest(name: str, known: list[str], prefix: str = "") -> str:
    stem = f"{prefix}." if prefix and not prefix.startswith("stages") else ""
    siblings = [key for key in known if key.startswith(stem) and "." not in key[len(stem) :]] if stem else known
    candidates = difflib.get_close_matches(stem + name, siblings, n=1, cutoff=0.5)
    if not candidates:  # the right key in the wrong section, or no section at all
        by_last = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
        candidates = [by_last[last] for last in difflib.get_close_matches(name, by_last, n=1, cutoff=0.6)]
    return f"; did you mean {candidates[0]}?" if candidates else f"; known here: {', '.join(siblings)}"


def to_yaml(config: ExperimentConfig) -> str:
    """The resolved config as YAML, which load_config reads back to an equal one."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


"""A run's resolved config: its text, and the keys in which runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from dcdist.report.blocks import Block, Folded, Sentence, Table
from dcdist.run_directory import CONFIG
from dcdist.storage import Storage

_ABSENT = "-"


def read_config(storage: Storage) -> tuple[str | None, dict[str, Any]]:
    """The text of config.yaml, None where it cannot be read, and its values, none where it is damaged."""
    try:
        text = storage.read_bytes(CONFIG).decode(errors="replace")
    except OSError:
        return None, {}
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text, {}
    return text, values if isinstance(values, dict) else {}


def config_blocks(text: str | None, values: Mapping[str, Any]) -> tuple[Block, ...]:
    """The whole text, behind a line that opens it."""
    if text is None:
        return (Sentence(f"{CONFIG} is missing: the run had not written it yet, or it cannot be read.", warns=True),)
    folded = Folded(f"{CONFIG}, {len(text.splitlines())} lines", text)
    if not values:
        return (Sentence(f"{CONFIG} is damaged; this is its text.", warns=True), folded)
    return (folded,)


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of the config; empty where it is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def differing_keys(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> Table | Sentence:
    """The keys whose values are not the same in all runs."""
    flat = [dict(_flat(config)) for config in configs]
    keys = sorted({key for config in flat for key in config})
    rows = [(key, *(config.get(key, _ABSENT) for config in flat)) for key in keys]
    differing = tuple(row for row in rows if len(set(row[1:])) > 1)
    if not differing:
        return Sentence("All keys of the configs have the same values.")
    return Table("Keys that differ", ("", *names), differing)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, dict) and value:
            yield from _flat(value, name)
        elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
            for item in value:  # stages, and parts of a joint method
                yield from _flat({k: v for k, v in item.items() if k != "name"}, f"{name}.{item['name']}")
        else:
            yield name, str(value)

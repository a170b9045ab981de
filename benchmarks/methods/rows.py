"""The rows that there are: one JSON file, replaced whole after each row, so that a kill costs one row at most."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdist.config.identity import flatten
from dcdist.config.schema import ExperimentConfig, kind_of
from dcdist.config.sections import PLACEMENT

Row = dict[str, Any]


@dataclass(frozen=True)
class RowKey:
    """What a row is of. A row with another digest is of an older config or of other images: stale."""

    name: str
    seed: int | None  # None: nothing in it is random but the read-outs
    digest: str
    variant: str = ""  # tells baselines of one name apart, which configs that differ have side by side

    @property
    def line(self) -> str:
        """The rows of one line of a table differ in the seed alone."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def entry(self) -> str:
        """Its place in the file: one row for each line and seed."""
        return self.line if self.seed is None else f"{self.line}/{self.seed}"


def config_digest(config: ExperimentConfig, fingerprints: list[str]) -> str:
    """Of everything that decides what a run ends with, its length included, but the seed; and of the images.

    Keys at their defaults are left out, so that a key that is new tomorrow makes no row of today stale.
    """
    defaults = flatten(ExperimentConfig.model_validate({"run": {"dir": "-"}, "data": {"root": "-"}}))
    values = {}
    for path, value in flatten(config).items():
        key = path[2:] if path[0] == "stages" and len(path) > 1 else path
        if kind_of(key) != PLACEMENT and key != ("run", "seed") and value != defaults.get(key):
            values[".".join(path)] = value
    return digest([values, fingerprints])


def digest(value: Any) -> str:
    """12 hex digits of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


class Rows:
    """The file. Rows that it has are never measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = json.loads(path.read_text())["rows"] if path.exists() else {}

    def get(self, key: RowKey) -> Row | None:
        """The row, None where it is missing or stale."""
        row = self._rows.get(key.entry)
        return row if row is not None and row["digest"] == key.digest else None

    def add(self, key: RowKey, row: Row) -> None:
        """Stores a row in place of a stale one; at every instant the file is whole."""
        self._rows[key.entry] = {"name": key.name, "seed": key.seed, "digest": key.digest, **row}
        content = json.dumps({"rows": dict(sorted(self._rows.items()))}, indent=1, allow_nan=False) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._path.parent, suffix=".unfinished", delete=False) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(self._path)

"""README.md and the configs: links lead somewhere, commands and keys exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dcdist.config.load import known_keys, load_config
from tests.configs_shrunken import config_paths

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "benchmarks/README.md", "k8s/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
CONFIGS = config_paths(ROOT / "configs")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    for target in targets:
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_keys_in_the_readme_exist() -> None:
    keys = set(known_keys())
    for document in DOCUMENTS:
        named = re.findall(r"\b([a-z_]+\.[a-z_]+)=", document.read_text())
        assert set(named) - {"a.b"} <= keys
        assert len(named) > 5 or document.name != "README.md" or document.parent != ROOT


def test_commands_to_train_are_understood() -> None:
    texts = [(ROOT / "README.md").read_text(), *(path.read_text() for path in CONFIGS)]
    commands = [
        shlex.split(command)
        for text in texts
        for command in re.findall(r"dcdist train (configs/[^;`#\n(]+)", text.replace("\\\n", " "))
    ]
    assert len(commands) >= 2 + len(CONFIGS)
    for config, *overrides in commands:
        load_config(ROOT / config, [word for word in overrides if "=" in word])


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"`make ([a-z]+)", (ROOT / "README.md").read_text())) | {"demo"}
    made = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= made


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load_and_say_how_they_are_run(path: Path) -> None:
    load_config(path)
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"dcdist train {path.relative_to(ROOT)}" in header


def test_imports_run_downwards_only() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("folder", ["dcdist", "tests", "benchmarks"])
def test_files_stay_short(folder: str) -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 400
    }
    assert long == {}

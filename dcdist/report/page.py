"""Sections as one HTML page that needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata, resources
from itertools import groupby
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dcdist.report.blocks import (
    Block,
    Folded,
    Gallery,
    HeatMap,
    LineChart,
    Section,
    Sentence,
    StackedBars,
    Table,
    TimeLine,
)
from dcdist.report.drawing import draw, joint_limits
from dcdist.report.overview import table_of_facts
from dcdist.report.sections import SECTIONS, RunStory
from dcdist.report.settings import differing_keys

# What no page may hold: control characters, and halves of surrogate pairs, which JSON can bring in.
_NO_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_TEMPLATES = resources.files("dcdist.report") / "templates"


@dataclass(frozen=True)
class Picture:
    """A chart that is drawn."""

    title: str
    caption: str
    svg: Markup


def render(stories: Sequence[RunStory], made: str) -> str:
    """The page.

    Args:
        stories: the runs, at least one; several stand side by side.
        made: when, in words.
    """
    names = short_names([story.url for story in stories])
    drawn = _draw_all([block for story in stories for blocks in story.blocks.values() for block in blocks])
    sections = [
        Section(anchor, title, introduction, tuple(story.blocks[anchor] for story in stories))
        for anchor, title, introduction in SECTIONS
    ]
    if len(stories) > 1:
        differences = differing_keys(names, [story.config for story in stories])
        sections = [replace(s, common=(differences,)) if s.anchor == "config" else s for s in sections]
    template = _environment().from_string((_TEMPLATES / "page.html.jinja").read_text("utf-8"))
    page = template.render(
        title=f"dcdist report: {' and '.join(names)}",
        style=Markup((_TEMPLATES / "page.css").read_text("utf-8")),
        names=names,
        stories=stories,
        facts=table_of_facts(names, [story.facts for story in stories]),
        sections=sections,
        drawn_of=lambda block: drawn[id(block)],
        grouped=_grouped,
        kind_of=_kind_of,
        made=made,
        version=metadata.version("dcdist"),
    )
    return _NO_CHARACTERS.sub("\ufffd", page)


def short_names(urls: Sequence[str]) -> list[str]:
    """As many last parts of each URL as tell the runs apart."""
    parts = [[part for part in url.rstrip("/").split("/") if part] or [url] for url in urls]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(urls)):
            break
    return names


def _draw_all(blocks: Sequence[Block]) -> dict[int, Picture]:
    """Every chart among the blocks, by its id()."""
    line_charts = [block for block in blocks if isinstance(block, LineChart)]
    drawn = {}
    for number, block in enumerate(blocks):
        if isinstance(block, LineChart):
            svg = draw(block, f"f{number}", joint_limits(block, line_charts))
        elif isinstance(block, StackedBars | HeatMap | TimeLine):
            svg = draw(block, f"f{number}")
        else:
            continue
        drawn[id(block)] = Picture(block.title, block.caption, svg)
    return drawn


@dataclass(frozen=True)
class _Group:
    """Neighbouring blocks that share a grid, or stand one below the other."""

    kind: str  # "grid", "tables" or "column"
    blocks: tuple[Block, ...]


def _grouped(blocks: Sequence[Block]) -> list[_Group]:
    groups = groupby(blocks, _group_of)
    return [_Group(kind, tuple(members)) for kind, members in groups]


def _group_of(block: Block) -> str:
    if isinstance(block, Table):
        return "tables"
    return "column" if isinstance(block, Sentence | Folded) else "grid"


def _kind_of(block: Block) -> str:
    kinds: Mapping[Any, str] = {Sentence: "sentence", Table: "table", Folded: "folded", Gallery: "gallery"}
    return kinds.get(type(block), "chart")


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

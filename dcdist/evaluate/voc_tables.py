"""Reports of the three kinds of evaluation on PASCAL VOC, for the terminal."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping
from typing import Any

from dcdist.evaluate.kinds import spread
from dcdist.evaluate.report import Report, where
from dcdist.evaluation.feature_sets import UNTRAINED
from dcdist.evaluation.tables import aligned, figure

_WIDTH = 110


def heading(report: Report) -> list[str]:
    """The run and the images."""
    data = report["data"]
    parts = [f"{data[part]['num_images']} images of {data[part]['split']}" for part in ("train", "test")]
    return [where(report), data["root"], f"trained further on {parts[0]}, scored on {parts[1]}", ""]


def score_table(report: Report, title: str, columns: Mapping[str, str]) -> list[str]:
    """Networks and published figures by modes and scores; `columns` are the scores' names and their headings."""
    modes = report["modes"]
    first = next(iter(columns))
    rows = [
        [row["name"], *(spread(row["modes"][mode]["scores"][score]) for mode in modes for score in columns)]
        for row in report["rows"]
    ]
    for published in report["published"]:
        cells = [figure(published.get(mode)) if score == first else "-" for mode in modes for score in columns]
        if any(cell != "-" for cell in cells):
            mark = " [mem]" if published["from_memory"] else ""
            rows.append([f"published: {published['name']}{mark}", *cells])
    headings = [f"{mode}: {name}" for mode in modes for name in columns.values()]
    return aligned([title, *headings], rows)


def class_table(report: Report, title: str, score: str) -> list[str]:
    """A line for each class: of each network and mode the mean over the seeds."""
    measured = [
        (row["name"].split()[0], mode, row["modes"][mode]) for row in report["rows"] for mode in report["modes"]
    ]
    names = list(measured[0][2]["seeds"][0]["classes"])
    rows = [[name, *(_mean_of_class(found, name) for _, _, found in measured)] for name in names]
    return aligned([f"{title}, {score}", *(f"{network}, {mode}" for network, mode, _ in measured)], rows)


def _mean_of_class(found: Mapping[str, Any], name: str) -> str:
    values = [seed["classes"][name] for seed in found["seeds"]]
    known = [value for value in values if value is not None]
    return figure(statistics.fmean(known)) if known else "-"


def notes(report: Report, *others: str) -> list[str]:
    """What the tables' words mean, lines that fit a terminal.

    Args:
        report: the modes, what each of them trains, the data of published figures.
        others: more sentences.
    """
    sentences = [f"{mode}: {report['protocol']['trained'][mode]}" for mode in report["modes"]]
    if any(row["name"] == UNTRAINED for row in report["rows"]):
        sentences.append(f"{UNTRAINED}: {report['protocol'][UNTRAINED]}")
    sentences.append(f"published: {report['published'][0]['data']}; [mem]: as remembered, not looked up again")
    if report["num_seeds"] > 1:
        sentences.append(f"means and standard deviations over {report['num_seeds']} seeds")
    wrap = textwrap.TextWrapper(width=_WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return [line for sentence in (*sentences, *others) for line in wrap.wrap(sentence)]

"""Losses and what else a stage's training says of itself, and how its clusterings developed, as charts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dcdist.report.blocks import Block, Chart, Line, LineChart, Sentence, blocks_or
from dcdist.report.history import History
from dcdist.report.series import Curve, clustering_curve, epoch_curve, epoch_means, heads, step_curve

EPOCHS = "epochs trained"
MOST_TERMS = 6  # lines that a chart of loss terms shows


def training_blocks(history: History) -> tuple[Block, ...]:
    """Losses of each stage, their terms, the method's own figures and the learning rate."""
    stages = history.stages()
    blocks: list[Block] = []
    for stage in stages:
        where = f", stage {stage}" if len(stages) > 1 else ""
        blocks += [*_losses(history, stage, where), *_terms(history, stage, where), *_rate(history, stage, where)]
    return blocks_or(blocks, "No step has been recorded yet.")


def clustering_blocks(history: History) -> tuple[Block, ...]:
    """Objective, stability and agreement with labels of each stage that clusters."""
    stages = history.stages()
    blocks: list[Block] = []
    for stage in stages:
        numbers = heads(history, stage)
        where = f", stage {stage}" if len(stages) > 1 else ""
        note = f" Strong lines: head {numbers[0]} of {len(numbers)}; faint ones: the others." if numbers[1:] else ""
        blocks += _clusterings(history, stage, where, numbers, note)
    without = [stage for stage in stages if not heads(history, stage)]
    if without:
        named = f"Stage {without[0]} has" if len(without) == 1 else f"Stages {', '.join(without)} have"
        blocks.append(Sentence(f"{named} recorded no clustering while training."))
    return blocks_or(blocks, "No clustering has been recorded yet.")


def balance_blocks(history: History, stage: str, where: str) -> Iterator[Chart]:
    """How evenly the images are spread over the clusters."""
    numbers = heads(history, stage)
    lines = [
        *_head_lines(history, stage, numbers, "size_entropy_ratio", "evenness", 0),
        *_head_lines(history, stage, numbers, "size_max_ratio", "share of the largest", 1),
    ]
    if lines:
        yield LineChart(
            f"balance{where}",
            f"Balance of the clusters{where}",
            "Evenness is the entropy of the sizes over its largest value: 1 where all clusters are equally large. "
            "Below it, the share of all images that is in the largest cluster.",
            *(EPOCHS, "ratio"),
            tuple(lines),
            lowest=0.0,
            highest=1.0,
        )


def speed_blocks(history: History, stage: str, where: str) -> Iterator[Chart]:
    """Images a second in training."""
    x, y = epoch_curve(history, stage, "samples_per_second")
    line = _line("training", (x[y > 0], y[y > 0]), 0)  # 0: an attempt that found its epoch trained already
    if line:
        yield LineChart(
            f"speed{where}",
            f"Speed of training{where}",
            "Images a second over all processes, mean of each epoch.",
            *(EPOCHS, "images a second"),
            tuple(line),
            lowest=0.0,
        )


def _losses(history: History, stage: str, where: str) -> Iterator[Block]:
    heldout = _line("held-out images", epoch_curve(history, stage, "heldout_loss"), 1)
    lines = [
        *_line("training, steps", step_curve(history, stage, "loss"), 0, faint=True),
        *_line("training, epochs", epoch_curve(history, stage, "loss"), 0),
        *heldout,
    ]
    if not lines:
        yield Sentence(f"Stage {stage} has recorded no loss yet.")
        return
    caption = "Mean of each epoch, and of the steps between two records."
    rates = np.unique(step_curve(history, stage, "learning_rate")[1])
    if len(rates) == 1:
        caption += f" The learning rate was {rates[0]:g} throughout."
    if heldout:
        caption += " Held-out images are not augmented, so their loss may be the lower one."
    elif len(lines[-1].x):
        caption += " No held-out loss is recorded: no held-out split was given, or the method has none."
    yield LineChart(f"loss{where}", f"Loss{where}", caption, EPOCHS, "loss", tuple(lines), unit=stage)


def _terms(history: History, stage: str, where: str) -> Iterator[Chart]:
    terms = epoch_means(history, stage, "losses")
    if len(terms) > 1:
        shown = list(terms.items())[:MOST_TERMS]
        lines = [line for number, (name, curve) in enumerate(shown) for line in _line(name, curve, number)]
        caption = "The terms whose sum is the training loss." + (
            f" The first {MOST_TERMS} of {len(terms)}." if len(terms) > MOST_TERMS else ""
        )
        title = f"Terms of the loss{where}"
        yield LineChart(f"terms{where}", title, caption, EPOCHS, "loss", tuple(lines), unit=stage)
    figures = list(epoch_means(history, stage, "figures").items())
    for start in range(0, len(figures), MOST_TERMS):
        part = figures[start : start + MOST_TERMS]
        lines = [line for number, (name, curve) in enumerate(part) for line in _line(_words(name), curve, number)]
        yield LineChart(
            f"figures {start}{where}",
            f"Figures of the method{where}",
            "What the method measures of itself while it trains, mean of each epoch.",
            *(EPOCHS, _words(part[0][0]) if len(part) == 1 else "ratio"),
            tuple(lines),
            lowest=0.0,
            highest=1.0 if max(line.y.max() for line in lines) <= 1.0 else None,
            unit=stage,
        )


def _rate(history: History, stage: str, where: str) -> Iterator[Chart]:
    curve = step_curve(history, stage, "learning_rate")
    rates = np.unique(curve[1])
    if len(rates) > 1:
        yield LineChart(
            f"learning rate{where}",
            f"Learning rate{where}",
            "As the optimizer had it.",
            *(EPOCHS, "learning rate"),
            tuple(_line("learning rate", curve, 0)),
            lowest=0.0,
        )


def _clusterings(history: History, stage: str, where: str, numbers: list[int], note: str) -> Iterator[Chart]:
    objective = _head_lines(history, stage, numbers, "objective", "objective", 0)
    if objective:
        yield LineChart(
            f"objective{where}",
            f"Clustering objective{where}",
            f"Mean squared distance of an image's features to its centroid.{note}",
            *(EPOCHS, "squared distance"),
            tuple(objective),
            unit=stage,
        )
    stability = [
        *_head_lines(history, stage, numbers, "nmi_previous", "NMI with the clustering before", 0),
        *_head_lines(history, stage, numbers, "changed_ratio", "share of images that changed", 1),
    ]
    if stability:
        yield LineChart(
            f"stability{where}",
            f"Change between clusterings{where}",
            "NMI with the clustering before: 1 is the same partition. Images have changed where they left the cluster "
            f"that matches their old one.{note}",
            *(EPOCHS, "ratio"),
            tuple(stability),
            lowest=0.0,
            highest=1.0,
        )
    targets = _head_lines(history, stage, numbers, "nmi_targets", "NMI with the labels", 2)
    if targets:
        yield LineChart(
            f"targets{where}",
            f"Agreement with the labels{where}",
            f"NMI of the clusters with the classes, which training does not see.{note}",
            *(EPOCHS, "NMI"),
            tuple(targets),
            lowest=0.0,
        )


def _head_lines(
    history: History, stage: str, numbers: list[int], figure: str, name: str, colour: int
) -> tuple[Line, ...]:
    """A line a head: the first one strong and named, the others faint."""
    return tuple(
        line
        for number in numbers
        for line in _line(
            name if number == numbers[0] else "",
            clustering_curve(history, stage, figure, number),
            colour,
            faint=number != numbers[0],
        )
    )


def _line(name: str, curve: Curve, colour: int, faint: bool = False) -> tuple[Line, ...]:
    """None where the curve has no point."""
    return (Line(name, *curve, colour, faint),) if len(curve[0]) else ()


def _words(name: str) -> str:
    return name.replace("_", " ")

"""Tables of RUN/evaluations/KIND-NNNN.json; of a kind that is not known here, of whatever numbers its rows have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dcdist.evaluation.published import AS_REMEMBERED
from dcdist.report.blocks import Block, Folded, Sentence, Table
from dcdist.run_directory import EVALUATIONS
from dcdist.storage import Storage

Report = Mapping[str, Any]

TRAINED = "trained network"
MOST_COLUMNS = 5  # of more figures a row, figures are the rows: a phone is narrow
MOST_FIGURES = 80
_FILE = re.compile(r"(.+)-(\d{4,})\.json")
_KINDS = {
    "summary": "Summary at the end of the run",
    "knn": "Nearest neighbours",
    "linear": "Linear classifier",
    "clusters": "Clusters against classes",
    "voc-classification": "PASCAL VOC, classification",
    "voc-detection": "PASCAL VOC, detection",
    "voc-segmentation": "PASCAL VOC, segmentation",
    "retrieval": "Retrieval",
}
_WORDS = {
    "nmi": "NMI",
    "ami": "AMI",
    "ari": "ARI",
    "map": "mAP",
    "map_eleven_points": "mAP, eleven points",
    "map_area": "mAP, area",
    "mean_iou": "mean IoU",
    "num_classes": "classes",
    "accuracy": "ACC",
    "knn": "kNN",
    "linear": "linear classifier",
    "num_clusters": "clusters",
    "plain": "k-means",
    "whitened": "whitened k-means",
    "ward": "Ward",
    "neighbors": "neighbours",
    "final": "the run's own",
    "top1": "top-1",
    "top5": "top-5",
    "heldout": "held-out",
    "train": "training",
    "by_train_naming": "ACC, named by training",
    "by_best_naming": "ACC, best naming",
}
_CLUSTER_SCORES = (
    ("train", "nmi", "NMI"),
    ("train", "ari", "ARI"),
    ("train", "ami", "AMI"),
    ("train", "accuracy", "ACC"),
    ("train", "purity", "purity"),
    ("heldout", "nmi", "held-out NMI"),
    ("heldout", "by_train_naming", "held-out ACC"),
    ("heldout", "by_best_naming", "best held-out ACC"),
)
_NOTES = {
    "knn": "Top-1; k neighbours vote.",
    "linear": "On frozen features, held-out images.",
    "clusters": "ACC by the best one-to-one matching of clusters and classes; of held-out images by the names that "
    "the clusters have on the training images, best: by their own matching.",
    "summary": "Means over seeds of k-means. NMI and ACC of the training images; kNN and linear of held-out ones.",
}
_NOT_SCORES = ("name", "num_seeds", "seeds", "seconds", "penalty", "note", "from_memory")
_DETAILS = ("queries",)  # lists of rows that are too long for a table
_SILENT = ("modes", "scores")  # names of mappings that say nothing


def read_reports(storage: Storage) -> tuple[list[dict[str, Any]], list[str]]:
    """All evaluations, each with its "file", by kind and number, and sentences on those that cannot be read."""
    reports, remarks = [], []
    for name in sorted(storage.list(EVALUATIONS), key=_order):
        match = _FILE.fullmatch(name)
        if not match:
            continue
        try:
            content = json.loads(storage.read_bytes(f"{EVALUATIONS}/{name}"))
        except (OSError, ValueError):
            content = None
        rows = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            remarks.append(f"{EVALUATIONS}/{name} is damaged and left out.")
            continue
        reports.append({**content, "kind": str(content.get("kind", match[1])), "file": name})
    return reports, remarks


def evaluation_blocks(reports: Sequence[Report]) -> tuple[Block, ...]:
    """The newest evaluation of each kind, stage and data; the older ones folded."""
    newest = {_subject(report): report for report in reports}
    older = [report for report in reports if report is not newest[_subject(report)]]
    blocks: list[Block] = [table for report in newest.values() for table in tables_of(report)]
    if not blocks:
        return (Sentence("Nothing has been evaluated yet: dcdist evaluate does it, where there are labels."),)
    if older:
        folded = tuple(table for report in older for table in tables_of(report))
        blocks.append(Folded(f"{len(older)} older evaluation{'s' * (len(older) != 1)}", blocks=folded))
    return tuple(blocks)


def tables_of(report: Report) -> Iterator[Table]:
    """The tables of an evaluation."""
    kind = report["kind"]
    title = _KINDS.get(kind, f"{kind[:1].upper()}{kind[1:].replace('-', ' ')}")
    note = " ".join(part for part in (_NOTES.get(kind, ""), _where(report)) if part)
    if kind == "clusters":
        rows = {
            f"{row.get('name', '')}, {_words(name)}": _cluster_scores(readout["scores"])
            for row in report["rows"]
            for name, readout in row.items()
            if isinstance(readout, dict) and isinstance(readout.get("scores"), dict)
        }
        yield _table(title, rows, note, turned=False)
    else:
        rows = _named_rows(report["rows"])
        if kind == "knn":
            rows = {
                name: {key.replace("top-1, ", "k = "): text for key, text in row.items()} for name, row in rows.items()
            }
        yield _table(title, rows, note)
    published = report.get("published")
    if isinstance(published, list) and any(isinstance(row, dict) for row in published):
        found = _named_rows([row for row in published if isinstance(row, dict)])
        yield _table(f"{title}, as published", found, "What the report's method is compared with, of others.")
    clusters = report.get("clusters")
    if kind == "summary" and isinstance(clusters, dict):
        parts = {"training images": clusters.get("train"), "held-out images": clusters.get("heldout")}
        scores = {name: dict(_flat(part)) for name, part in parts.items() if isinstance(part, dict)}
        own = f"The run's own clusters, K = {_text(clusters.get('num_clusters'))}"
        if any(scores.values()):
            yield _table(own, scores, _where(report), turned=True)


def _named_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The figures of each row; rows of one name differ in other words (a layer, a data set)."""
    names = [str(row.get("name", "")) for row in rows]
    are_alike = len(set(names)) < len(names)
    found: dict[str, dict[str, str]] = {}
    for name, row in zip(names, rows, strict=True):
        words = [value for key, value in row.items() if isinstance(value, str) and key not in _NOT_SCORES]
        parts = [name, *map(_words, words)] if are_alike else [name]
        if row.get("from_memory") or AS_REMEMBERED in str(row.get("note")):
            parts.append("from memory")
        label = ", ".join(parts)
        while label in found:
            label += "'"
        found[label] = {key: text for key, text in _flat(row) if not are_alike or text not in words}
    return found


def _cluster_scores(scores: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for part, name, title in _CLUSTER_SCORES:
        of_part = scores.get(part)
        score = of_part.get(name) if isinstance(of_part, dict) else None
        if isinstance(score, dict) and _is_spread(score):
            found[title] = _text(score)
    return found


def headline_scores(reports: Sequence[Report]) -> dict[str, str]:
    """What a run is compared by: accuracies of the trained network in its newest evaluations of its own images."""
    found: dict[str, str] = {}
    for report in reports:
        row = next((row for row in report["rows"] if row.get("name") == TRAINED), None)
        data = report.get("data")
        if row is None or (isinstance(data, dict) and not data.get("of_the_run", True)):
            continue
        if report["kind"] == "knn" and isinstance(row.get("top1"), dict):
            for count in sorted(row["top1"], key=lambda text: (text != "20", text))[:1]:
                found = {key: value for key, value in found.items() if not key.startswith("kNN")}
                found[f"kNN, {count} neighbours"] = _text(row["top1"][count])
        elif report["kind"] == "linear":
            found |= _best_linear([row for row in report["rows"] if row.get("name") == TRAINED])
        elif report["kind"] == "summary":
            found |= {_words(name): _text(row[name]) for name in ("knn", "linear") if row.get(name) is not None}
    return found


def _best_linear(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The accuracy of the trained network; of several layers that of the best."""
    rated = [row for row in rows if _is_spread(row.get("top1"))]
    if not rated:
        return {}
    best = max(rated, key=lambda row: float(row["top1"]["mean"]))
    layer = f", best layer ({best['layer']})" if "layer" in best else ""
    return {f"linear classifier{layer}": _text(best["top1"])}


def _table(title: str, rows: Mapping[str, Mapping[str, str]], note: str, turned: bool | None = None) -> Table:
    """Rows and figures, or turned, so that figures are the rows."""
    figures = list(dict.fromkeys(name for row in rows.values() for name in row))
    if len(figures) > MOST_FIGURES:
        note += f" The first {MOST_FIGURES} of {len(figures)} figures."
        figures = figures[:MOST_FIGURES]
    if len(figures) > MOST_COLUMNS if turned is None else turned:
        cells = tuple((name, *(row.get(name, "-") for row in rows.values())) for name in figures)
        return Table(title, ("", *rows), cells, note)
    return Table(
        title, ("", *figures), tuple((name, *(row.get(f, "-") for f in figures)) for name, row in rows.items()), note
    )


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Scores of nested mappings, and of lists of rows with names: the name of each and its text."""
    for key, value in values.items():
        base = re.sub(r"_(min|max)$", "", str(key))
        if key in _NOT_SCORES or value is None or (base != key and base in values):
            continue
        name = ", ".join(part for part in (above, "" if key in _SILENT else _words(str(key))) if part)
        if isinstance(value, dict) and not _is_spread(value):
            yield from _flat(value, name)
        elif isinstance(value, list):
            for item in value if key not in _DETAILS else ():
                if isinstance(item, dict) and "name" in item:
                    yield from _flat(item, f"{name}, {item['name']}")
        else:
            ends = [values.get(f"{key}_{end}") for end in ("min", "max")]
            low, high = map(_text, ends)
            yield name, _text(value) + (f" ({low} to {high})" if low != high else "")


def _text(value: Any) -> str:
    if _is_spread(value):
        deviation = value.get("deviation")
        return _text(value["mean"]) + (f"\u00a0±\u00a0{deviation:.3f}" if isinstance(deviation, int | float) else "")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)[:80]


def _is_spread(value: Any) -> bool:
    """Whether it is a mean with its deviation over seeds."""
    return (
        isinstance(value, dict) and set(value) <= {"mean", "deviation"} and isinstance(value.get("mean"), int | float)
    )


def _words(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))


def _where(report: Report) -> str:
    parts = []
    if report.get("checkpoint"):
        parts.append(f"{report['checkpoint']} of stage {report.get('stage')}")
    data = report.get("data")
    if isinstance(data, dict):
        number = data.get("num_labelled", data.get("num_images"))
        images = "images" if number is None else f"{_text(number)} images"
        of_others = "" if data.get("of_the_run", True) else ", not those that the run was trained on"
        parts.append(f"{images} of {data.get('root')}{of_others}")
    return "; ".join([*parts, str(report["file"])]) + "."


def _subject(report: Report) -> tuple[str, ...]:
    """What a later evaluation must share with an earlier one to replace it."""
    found = [report["kind"], report.get("stage"), report.get("modes")]
    for part, names in {
        "data": ("root", "split", "ground_truth"),
        "heldout": ("root", "split"),
        "protocol": ("name", "preset"),
    }.items():
        values = report.get(part)
        found += [values.get(name) for name in names] if isinstance(values, dict) else []
    return tuple(map(str, found))


def _order(name: str) -> tuple[str, int]:
    match = _FILE.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)

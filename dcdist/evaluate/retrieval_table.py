"""The retrieval report for the terminal, and the published figures beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dcdist.data.retrieval_ground_truth import ORIGINAL
from dcdist.evaluate.report import Report, where
from dcdist.evaluation.retrieval import PRECISIONS
from dcdist.evaluation.tables import aligned, figure

_NAMED = 5  # images that do not decode, on the terminal; all are in the report
_PUBLISHED_NOTE = """\
VGG-16, the last map before the last pooling, long side 1024, 3 levels of regions, whitened to 512 dimensions
on the other of the two sets"""

# mAP by the published protocol, which is that of the options' defaults with a VGG-16.
PUBLISHED: tuple[dict[str, Any], ...] = (
    {
        "name": "DeepCluster, ImageNet",
        "mAP": {"Oxford5k": 0.610, "Paris6k": 0.720},
        "source": "Caron et al., ECCV 2018; as remembered, not looked up again",
    },
    {
        "name": "DeeperCluster, YFCC100M",
        "mAP": {"Oxford5k": 0.558, "Paris6k": 0.734},
        "source": "Caron et al., ICCV 2019",
    },
    {
        "name": "labels of ImageNet, with Sobel",
        "mAP": {"Oxford5k": 0.724, "Paris6k": 0.815},
        "source": "Caron et al., ECCV 2018",
    },
    {
        "name": "labels of ImageNet, without Sobel",
        "mAP": {"Oxford5k": 0.649, "Paris6k": 0.813},
        "source": "a user's measurement with the published code",
    },
)


def render(report: Report) -> str:
    """A report for the terminal."""
    data, protocol = report["data"], report["protocol"]
    lines = [
        where(report),
        f"{data['num_queries']} queries of {data['ground_truth']} among {data['num_ranked']} images of {data['root']}",
        "",
        *aligned(["R-MAC", "mAP", *(f"mP@{k}" for k in PRECISIONS), "queries"], list(_cells(report["rows"]))),
        *_note(report["rows"][0], protocol),
        *_left_out(data["undecodable"], "ranked", data["num_undecodable_positives"]),
    ]
    if protocol["whitening"]:
        lines += _left_out(protocol["whitening"]["undecodable"], "whitened with", 0)
    if report["published"]:
        sets = ("Oxford5k", "Paris6k")
        cells = [
            [f"{row['name']} ({row['source']})", *(figure(row["mAP"][name]) for name in sets)]
            for row in report["published"]
        ]
        lines += ["", *aligned(["published mAP", *sets], cells), _PUBLISHED_NOTE]
    return "\n".join(lines)


def _cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        for setting, scores in row["settings"].items():
            name = row["name"] if setting == ORIGINAL else f"{row['name']}, {setting}"
            precisions = [figure(scores["mP"][str(k)]) for k in PRECISIONS]
            yield [name, figure(scores["mAP"]), *precisions, str(scores["num_queries"])]


def _note(row: Mapping[str, Any], protocol: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"layer {row['layer']}, long side {protocol['long_side']}, {protocol['levels']} levels, overlap "
        f"{protocol['overlap']:g}, {row['num_dimensions']} dimensions"
    )
    whitening = protocol["whitening"]
    if whitening:
        yield f"whitened by the regions of {whitening['num_images']} images of {whitening['root']}"
    else:
        yield "not whitened, which scores lower as a rule: --whitening-data was not given"


def _left_out(undecodable: Mapping[str, str], what: str, num_positives: int) -> Iterator[str]:
    if undecodable:
        named = ", ".join(list(undecodable)[:_NAMED]) + (", ..." if len(undecodable) > _NAMED else "")
        found = f"; {num_positives} of them were to be found and count as not found" if num_positives else ""
        yield f"{len(undecodable)} images do not decode and are not {what}: {named}{found}"

"""A small set for `dcdist evaluate retrieval`, of any photographs: each of some is to be found in four crops of itself.

    python -m benchmarks.retrieval_set voc2007_excerpt.tar FOLDER
    dcdist evaluate retrieval RUN --data FOLDER/jpg --ground-truth FOLDER/gt --whitening-data FOLDER/whitening \
        --size 384 --dimensions 256
    dcdist evaluate retrieval RUN --data FOLDER/jpg --ground-truth FOLDER/gnd.pkl --whitening-data FOLDER/whitening \
        --size 384 --dimensions 256

The photographs themselves are junk, half of the crops are mirrored. Of the revision's form two crops are easy (they
show most of the photograph) and two hard.
"""

from __future__ import annotations

import argparse
import io
import pickle
import tarfile
from pathlib import Path

from PIL import Image

NUM_QUERIES, NUM_WHITENING = 55, 100
# Shares of width and height: left, upper, right, lower; whether mirrored.
CROPS = {
    "a": ((0.0, 0.0, 0.8, 0.9), False),
    "b": ((0.15, 0.1, 1.0, 1.0), True),
    "c": ((0.3, 0.2, 0.9, 0.8), False),
    "d": ((0.05, 0.3, 0.6, 0.95), True),
}
EASY = ("a", "b")
QUERY = (0.05, 0.05, 0.95, 0.95)  # the box that is searched for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photographs", type=Path, help="a tar with .jpg files")
    parser.add_argument("folder", type=Path, help="is made")
    options = parser.parse_args()
    with tarfile.open(options.photographs) as archive:
        members = sorted((m for m in archive if m.name.endswith(".jpg")), key=lambda member: member.name)
        contents = {Path(member.name).stem: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    write_set(contents, options.folder)


def write_set(contents: dict[str, bytes], folder: Path) -> None:
    """Writes jpg/, whitening/, gt/ and gnd.pkl of photographs (JPEG bytes) by name."""
    ranked, text, whitening = folder / "jpg", folder / "gt", folder / "whitening"
    for path in (ranked, text, whitening):
        path.mkdir(parents=True)
    names = list(contents)
    queries, others = names[:NUM_QUERIES], names[NUM_QUERIES:-NUM_WHITENING]
    for name in names[-NUM_WHITENING:]:
        (whitening / f"{name}.jpg").write_bytes(contents[name])
    for name in (*queries, *others):
        (ranked / f"{name}.jpg").write_bytes(contents[name])
    listed = [f"{name}_{crop}" for name in queries for crop in CROPS] + others
    place = {name: index for index, name in enumerate(listed)}
    entries = []
    for name in queries:
        image = Image.open(io.BytesIO(contents[name])).convert("RGB")
        for crop, (shares, mirrored) in CROPS.items():
            shown = image.crop(_pixels(shares, image.size))
            if mirrored:
                shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            shown.save(ranked / f"{name}_{crop}.jpg", quality=90)
        box = _pixels(QUERY, image.size)
        lines = {
            "query": [f"{name} {' '.join(map(str, box))}"],
            "good": [f"{name}_{crop}" for crop in EASY],
            "ok": [f"{name}_{crop}" for crop in CROPS if crop not in EASY],
            "junk": [name],
        }
        for kind, content in lines.items():
            (text / f"{name}_{kind}.txt").write_text("".join(f"{line}\n" for line in content))
        easy, hard = ([place[one] for one in lines[kind]] for kind in ("good", "ok"))
        entries.append({"bbx": list(box), "easy": easy, "hard": hard, "junk": []})
    ground_truth = {"gnd": entries, "imlist": listed, "qimlist": queries}
    (folder / "gnd.pkl").write_bytes(pickle.dumps(ground_truth))


def _pixels(shares: tuple[float, ...], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, upper, right, lower = (round(share * side) for share, side in zip(shares, size * 2, strict=True))
    return left, upper, right, lower


if __name__ == "__main__":
    main()

"""Which images a retrieval is to find: the text files of Oxford5k and Paris6k, and the pickles of their revision.

Text (Philbin et al., CVPR 2007 and 2008): a folder with NAME_query.txt, one line `IMAGE x1 y1 x2 y2`, and
NAME_good.txt, NAME_ok.txt and NAME_junk.txt, an image a line; NAME is a landmark and a number. Revisited (Radenovic et
al., CVPR 2018): a pickled dict of imlist (images that are ranked), qimlist (queries) and gnd, for each query a dict of
bbx (its box) and easy, hard and junk (positions in imlist). Images are named by file name without folder and suffix.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdist.data.plain_pickle import read_plain_pickle
from dcdist.data.whole_images import Box
from dcdist.errors import UsageError

ORIGINAL, EASY, MEDIUM, HARD = "original", "easy", "medium", "hard"
REVISITED = (EASY, MEDIUM, HARD)

_QUERY = "_query.txt"
_OXFORD_PREFIX = "oxc1_"  # of the images in Oxford's query files alone
_LISTS = ("easy", "hard", "junk")


@dataclass(frozen=True)
class Relevance:
    """Images to be found; and images that count as if they were not there."""

    positives: frozenset[str]
    junk: frozenset[str]


@dataclass(frozen=True)
class Query:
    """A box of an image, and what it is to find."""

    name: str
    image: str
    box: Box
    relevance: Mapping[str, Relevance]  # by setting
    where: str  # file and entry, for messages


@dataclass(frozen=True)
class GroundTruth:
    """All queries of a data set."""

    queries: tuple[Query, ...]
    ranked: tuple[str, ...]  # the images among which they are searched
    settings: tuple[str, ...]


def read_ground_truth(path: Path, images: Collection[str]) -> GroundTruth:
    """Reads a folder of text files, or a pickle of the revision.

    Args:
        path: the folder or the file.
        images: the names of the images at hand; of the text files' queries all of them are ranked.

    Raises:
        UsageError: names file and entry of what is missing, malformed or contradictory, or no image at hand.
    """
    if path.is_dir():
        return _read_text(path, images)
    if path.is_file():
        return _read_revisited(path, images)
    raise UsageError(
        f"{path} does not exist: expected a folder of *{_QUERY}, *_good.txt, *_ok.txt and *_junk.txt, or a pickle as "
        "gnd_roxford5k.pkl"
    )


def _read_text(folder: Path, images: Collection[str]) -> GroundTruth:
    files = sorted(folder.glob(f"*{_QUERY}"))
    if not files:
        raise UsageError(
            f"{folder} holds no *{_QUERY}: expected the text files of Oxford5k's or Paris6k's ground truth"
        )
    queries = tuple(_read_query(file, images) for file in files)
    return GroundTruth(queries, tuple(sorted(images)), (ORIGINAL,))


def _read_query(file: Path, images: Collection[str]) -> Query:
    name = file.name.removesuffix(_QUERY)
    lines = list(_lines(file))
    if len(lines) != 1 or len(lines[0][1].split()) != 5:
        raise UsageError(f"{file}: expected one line `IMAGE x1 y1 x2 y2`, found {[line for _, line in lines]}")
    where, line = lines[0]
    image, *edges = line.split()
    image = _known(image.removeprefix(_OXFORD_PREFIX), images, where)
    good, ok, junk = (
        {_known(line, images, where) for where, line in _lines(file.with_name(f"{name}_{kind}.txt"))}
        for kind in ("good", "ok", "junk")
    )
    positives = good | ok
    if positives & junk:
        raise UsageError(
            f"{file.with_name(f'{name}_junk.txt')} names {min(positives & junk)!r}, which {name}_good.txt or "
            f"{name}_ok.txt names, too: an image is to be found or left out, not both"
        )
    relevance = {ORIGINAL: Relevance(frozenset(positives), frozenset(junk))}
    return Query(name, image, _box(edges, where), relevance, where)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """`file:line` and text of the lines that are not empty."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{file}:{number}", line.strip()


def _read_revisited(file: Path, images: Collection[str]) -> GroundTruth:
    content = _dict_of(read_plain_pickle(file), ("imlist", "qimlist", "gnd"), f"{file}")
    ranked = _names(content["imlist"], images, f"{file}: imlist")
    query_images = _names(content["qimlist"], images, f"{file}: qimlist")
    entries = _list_of(content["gnd"], f"{file}: gnd")
    if len(entries) != len(query_images):
        raise UsageError(f"{file}: gnd has {len(entries)} entries for the {len(query_images)} queries of qimlist")
    queries = []
    for number, (image, entry) in enumerate(zip(query_images, entries, strict=True)):
        where = f"{file}: gnd[{number}]"
        _dict_of(entry, ("bbx", *_LISTS), where)
        named = {kind: _members(entry[kind], ranked, f"{where}[{kind!r}]") for kind in _LISTS}
        _require_disjoint(named, where)
        box = _box(_list_of(entry["bbx"], f"{where}['bbx']"), f"{where}['bbx']")
        queries.append(Query(image, image, box, _settings(**named), where))
    return GroundTruth(tuple(queries), tuple(ranked), REVISITED)


def _settings(easy: frozenset[str], hard: frozenset[str], junk: frozenset[str]) -> dict[str, Relevance]:
    """The three ways to count of Radenovic et al., section 3.3."""
    return {
        EASY: Relevance(easy, junk | hard),
        MEDIUM: Relevance(easy | hard, junk),
        HARD: Relevance(hard, junk | easy),
    }


def _dict_of(value: Any, keys: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or any(key not in value for key in keys):
        found = f"a dict of {', '.join(map(repr, value))}" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise UsageError(f"{where} is {found}: expected a dict of {', '.join(map(repr, keys))}")
    return value


def _list_of(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{where} is a {type(value).__name__}: expected a list or an array")
    return value


def _names(value: Any, images: Collection[str], where: str) -> list[str]:
    names: dict[str, int] = {}
    for number, name in enumerate(_list_of(value, where)):
        entry = f"{where}[{number}]"
        if not isinstance(name, str):
            raise UsageError(f"{entry} is {name!r}: expected the name of an image")
        if name in names:
            raise UsageError(f"{entry} is {name!r}, as entry {names[name]} is already")
        names[_known(name, images, entry)] = number
    if not names:
        raise UsageError(f"{where} is empty")
    return list(names)


def _members(value: Any, ranked: Sequence[str], where: str) -> frozenset[str]:
    """The images at these positions of imlist."""
    found = set()
    for number, position in enumerate(_list_of(value, where)):
        is_whole = isinstance(position, int | float) and not isinstance(position, bool) and position % 1 == 0
        if not (is_whole and 0 <= position < len(ranked)):
            raise UsageError(f"{where}[{number}] is {position!r}: expected a position in imlist, 0..{len(ranked) - 1}")
        found.add(ranked[int(position)])
    return frozenset(found)


def _require_disjoint(named: Mapping[str, frozenset[str]], where: str) -> None:
    for first, second in (("easy", "hard"), ("easy", "junk"), ("hard", "junk")):
        if both := named[first] & named[second]:
            raise UsageError(f"{where} has {min(both)!r} in {first!r} and in {second!r}: expected one of the two")


def _box(edges: Sequence[Any], where: str) -> Box:
    try:
        left, top, right, bottom = map(float, edges)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: the box {list(edges)} is not four numbers x1, y1, x2, y2") from error
    if not (all(map(math.isfinite, (left, top, right, bottom))) and left < right and top < bottom):
        raise UsageError(f"{where}: the box {list(edges)} is empty: expected finite x1 < x2 and y1 < y2")
    return left, top, right, bottom


def _known(name: str, images: Collection[str], where: str) -> str:
    if name not in images:
        nearest = difflib.get_close_matches(name, images, n=1, cutoff=0.0)
        raise UsageError(
            f"{where} names {name!r}, which is none of the {len(images)} images of the data; the nearest name is "
            f"{', '.join(map(repr, nearest))}. Is this the ground truth of other images, or have files been removed? "
            "(Those that do not decode may stay: they are left out and counted)"
        )
    return name

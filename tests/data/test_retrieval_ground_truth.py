"""Both forms of a retrieval's ground truth; every mistake in them is named by file and entry."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcdist.data.retrieval_ground_truth import EASY, HARD, MEDIUM, ORIGINAL, Relevance, read_ground_truth
from dcdist.errors import UsageError

IMAGES = {f"all_souls_{number:06d}" for number in range(6)} | {"paris_defense_000000", "paris_general_000001"}


def souls(*numbers: int) -> frozenset[str]:
    return frozenset(f"all_souls_{number:06d}" for number in numbers)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Two queries, as Oxford5k and Paris6k write them."""
    folder = tmp_path / "gt"
    folder.mkdir()
    for name, lines in {
        "all_souls_1_query": ["oxc1_all_souls_000000 136.5 34.1 648.5 955.7"],
        "all_souls_1_good": ["all_souls_000000", "all_souls_000001"],
        "all_souls_1_ok": ["all_souls_000002", ""],
        "all_souls_1_junk": ["all_souls_000003"],
        "defense_1_query": ["paris_defense_000000 0 10 20 30"],
        "defense_1_good": ["paris_defense_000000"],
        "defense_1_ok": [],
        "defense_1_junk": [],
    }.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "README").write_text("not a list")
    return folder


def revisited() -> dict[str, Any]:
    """A data set of two queries, as the published pickles hold it."""
    return {
        "imlist": [f"all_souls_{number:06d}" for number in range(1, 6)],
        "qimlist": ["all_souls_000000", "paris_defense_000000"],
        "gnd": [
            {"bbx": [136.5, 34.1, 648.5, 955.7], "easy": np.array([0, 1]), "hard": np.array([3]), "junk": [2]},
            {"bbx": np.array([0.0, 10, 20, 30]), "easy": np.array([]), "hard": np.array([4.0]), "junk": np.array([])},
        ],
    }


def written(folder: Path, content: Any) -> Path:
    file = folder / "gnd_roxford5k.pkl"
    file.write_bytes(pickle.dumps(content, 2))
    return file


def test_text_files(text: Path) -> None:
    truth = read_ground_truth(text, IMAGES)
    assert truth.ranked == tuple(sorted(IMAGES))
    assert truth.settings == (ORIGINAL,)
    first, second = truth.queries
    assert (first.name, first.image, first.box) == ("all_souls_1", "all_souls_000000", (136.5, 34.1, 648.5, 955.7))
    assert first.relevance == {ORIGINAL: Relevance(souls(0, 1, 2), souls(3))}
    assert (second.name, second.image, second.box) == ("defense_1", "paris_defense_000000", (0, 10, 20, 30))
    assert second.relevance == {ORIGINAL: Relevance(frozenset({"paris_defense_000000"}), frozenset())}


def test_the_revisions_pickle(tmp_path: Path) -> None:
    truth = read_ground_truth(written(tmp_path, revisited()), IMAGES)
    assert truth.ranked == tuple(revisited()["imlist"]), "queries and other images are not ranked"
    assert truth.settings == (EASY, MEDIUM, HARD)
    first, second = truth.queries
    assert (first.name, first.image, first.box) == ("all_souls_000000", "all_souls_000000", (136.5, 34.1, 648.5, 955.7))
    assert first.relevance == {
        EASY: Relevance(souls(1, 2), souls(3, 4)),
        MEDIUM: Relevance(souls(1, 2, 4), souls(3)),
        HARD: Relevance(souls(4), souls(1, 2, 3)),
    }
    assert second.relevance[EASY] == Relevance(frozenset(), souls(5))
    assert second.relevance[MEDIUM] == second.relevance[HARD] == Relevance(souls(5), frozenset())


WRONG_TEXT: dict[str, tuple[str, str, str]] = {
    "unknown image": ("all_souls_1_ok", "all_souls_000002\n\nall_souls_000099\n", "_ok.txt:3 names 'all_souls_000099'"),
    "unknown query": ("defense_1_query", "paris_defence_000000 0 1 2 3", "defense_1_query.txt:1 names 'paris_defence"),
    "three numbers": ("defense_1_query", "paris_defense_000000 0 1 2", "expected one line `IMAGE x1 y1 x2 y2`"),
    "two lines": ("defense_1_query", "paris_defense_000000 0 1 2 3\n" * 2, "expected one line"),
    "no number": ("defense_1_query", "paris_defense_000000 0 1 x 3", "query.txt:1: the box ['0', '1', 'x', '3']"),
    "not finite": ("defense_1_query", "paris_defense_000000 0 1 nan 3", "query.txt:1: the box"),
    "empty box": ("defense_1_query", "paris_defense_000000 0 30 20 10", "expected finite x1 < x2 and y1 < y2"),
    "found and junk": ("all_souls_1_junk", "all_souls_000002", "_junk.txt names 'all_souls_000002', which"),
    "not text": ("all_souls_1_good", "\udcff", "all_souls_1_good.txt cannot be read"),
}


@pytest.mark.parametrize("name", WRONG_TEXT)
def test_a_mistake_in_a_text_file_is_named(text: Path, name: str) -> None:
    file, content, message = WRONG_TEXT[name]
    (text / f"{file}.txt").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        read_ground_truth(text, IMAGES)
    assert str(text / file.rsplit("_", 1)[0]) in str(caught.value)
    assert message in str(caught.value)


def test_an_unknown_image_comes_with_the_nearest_name(text: Path) -> None:
    (text / "defense_1_good.txt").write_text("paris_defence_000000")
    with pytest.raises(
        UsageError, match="none of the 8 images of the data; the nearest name is 'paris_defense_000000'"
    ):
        read_ground_truth(text, IMAGES)


@pytest.mark.parametrize("kind", ["good", "ok", "junk"])
def test_a_list_that_is_missing_is_named(text: Path, kind: str) -> None:
    (text / f"defense_1_{kind}.txt").unlink()
    with pytest.raises(UsageError, match=rf"defense_1_{kind}\.txt cannot be read"):
        read_ground_truth(text, IMAGES)


def test_no_ground_truth(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no \*_query\.txt"):
        read_ground_truth(tmp_path, IMAGES)
    with pytest.raises(UsageError, match="does not exist: expected a folder"):
        read_ground_truth(tmp_path / "none", IMAGES)


def change(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """Sets content[keys[0]][keys[1]]... to a value."""

    def apply(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return apply


WRONG_PICKLES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no gnd": (lambda content: content.pop("gnd"), " is a dict of 'imlist', 'qimlist': expected a dict of"),
    "no list": (change("imlist", to="abc"), ": imlist is a str"),
    "empty list": (change("imlist", to=[]), ": imlist is empty"),
    "no name": (change("imlist", 2, to=7), ": imlist[2] is 7"),
    "unknown image": (change("imlist", 2, to="radcliffe_1"), ": imlist[2] names 'radcliffe_1'"),
    "twice": (change("imlist", 2, to="all_souls_000001"), ": imlist[2] is 'all_souls_000001', as entry 0"),
    "unknown query": (change("qimlist", 1, to="radcliffe_1"), ": qimlist[1] names 'radcliffe_1'"),
    "another length": (lambda content: content["gnd"].pop(), ": gnd has 1 entries for the 2 queries"),
    "no entry": (change("gnd", 1, to=5), ": gnd[1] is a int: expected a dict of 'bbx'"),
    "no junk": (lambda content: content["gnd"][1].pop("junk"), ": gnd[1] is a dict of 'bbx', 'easy', 'hard'"),
    "beyond": (change("gnd", 0, "hard", to=[0, 5]), ": gnd[0]['hard'][1] is 5: expected a position in imlist, 0..4"),
    "negative": (change("gnd", 0, "easy", to=[-1]), ": gnd[0]['easy'][0] is -1"),
    "no position": (change("gnd", 0, "easy", to=["a"]), ": gnd[0]['easy'][0] is 'a'"),
    "a fraction": (change("gnd", 0, "easy", to=[0.5]), ": gnd[0]['easy'][0] is 0.5"),
    "truth for a number": (change("gnd", 0, "easy", to=[True]), ": gnd[0]['easy'][0] is True"),
    "two dimensions": (change("gnd", 0, "easy", to=np.zeros((2, 2), int)), ": gnd[0]['easy'][0] is [0, 0]"),
    "easy and junk": (change("gnd", 0, "junk", to=[1]), ": gnd[0] has 'all_souls_000002' in 'easy' and in 'junk'"),
    "three edges": (change("gnd", 0, "bbx", to=[1, 2, 3]), ": gnd[0]['bbx']: the box [1, 2, 3] is not four"),
    "no box": (change("gnd", 0, "bbx", to=None), ": gnd[0]['bbx'] is a NoneType"),
    "not finite": (change("gnd", 0, "bbx", to=[0, 0, float("inf"), 1]), ": gnd[0]['bbx']: the box"),
}


@pytest.mark.parametrize("name", WRONG_PICKLES)
def test_a_mistake_in_a_pickle_is_named(tmp_path: Path, name: str) -> None:
    spoil, message = WRONG_PICKLES[name]
    content = revisited()
    spoil(content)
    file = written(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        read_ground_truth(file, IMAGES)
    assert str(caught.value).startswith(f"{file}{message}")

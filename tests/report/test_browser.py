"""The page in a browser, as wide as a phone and as a large screen: nothing sticks out, everything is legible."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dcdist.report import write_report
from tests.availability import unavailable
from tests.report.made_runs import make_run, write, write_attempt

SMALLEST_TEXT = 9.0  # pixels

# The page in a frame (a window cannot be as narrow as a phone), and what is to be known of it.
PROBE = """<!DOCTYPE html><html><body style="margin:0"><iframe id="page" style="border:0;width:{width}px;height:900px"
srcdoc="{page}"></iframe><pre id="found"></pre><script>
document.getElementById("page").onload = (event) => {{
  const page = event.target.contentDocument, found = {{}};
  found.width = page.documentElement.scrollWidth;
  const outside = (inner, outer) => inner.left < outer.left - 2 || inner.right > outer.right + 2 ||
    inner.top < outer.top - 2 || inner.bottom > outer.bottom + 2;
  const texts = [...page.querySelectorAll("svg text")];
  found.num_texts = texts.length;
  found.cut = texts.filter(text => outside(text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()))
    .map(text => text.closest("svg").getAttribute("aria-label") + ": " + text.textContent);
  found.smallest = Math.min(...texts.map(text => parseFloat(getComputedStyle(text).fontSize) *
    text.closest("svg").getBoundingClientRect().width / text.closest("svg").viewBox.baseVal.width));
  found.unshown = [...page.images].filter(image => !image.complete || !image.naturalWidth).length;
  found.num_images = page.images.length;
  const cells = [...page.querySelectorAll("h1, h2, h3, h4, p, figcaption, summary")];
  found.wide = cells.filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent);
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script></body></html>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser's command."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        unavailable("no Chromium is installed: apt-get install chromium")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> dict[str, str]:
    """Reports of a plain run, and of two whose names, paths and tables are long, one of them with many restarts."""
    folder = tmp_path_factory.mktemp("runs")
    plain = make_run(folder / "plain", num_clusters=12, images=digits_folder)
    long = make_run(folder / ("a-run-with-a-long-name" * 6), stages=("a_stage_with_a_long_name", "and_another_one"))
    figures = {f"a figure with a long name {number}": number / 7 for number in range(20)}
    rows = [{"name": f"a network with a long name {number}", **figures} for number in range(8)]
    evaluation = {"kind": "new", "rows": rows, "data": {"of_the_run": True, "root": "/a/long/path" * 20}}
    evaluation["label_names"] = [f"a class with a long name {number}" for number in range(3)]
    write(long / "evaluations" / "new-0001.json", json.dumps(evaluation))
    for number in range(2, 40):
        write_attempt(long, number, 100 * number, (100 * number + 30, 75, "Preempted: " + "because " * 40), [])
    reports = {"plain": [plain], "long": [long], "both": [plain, long]}
    return {
        name: Path(write_report([str(run) for run in runs], str(folder / f"{name}.html")).url).read_text()
        for name, runs in reports.items()
    }


@pytest.mark.parametrize("name", ["plain", "long", "both"])
@pytest.mark.parametrize("width", [360, 390, 768, 1600])
def test_it_reads_well(chromium: str, pages: dict[str, str], tmp_path: Path, name: str, width: int) -> None:
    (tmp_path / "probe.html").write_text(PROBE.format(width=width, page=html.escape(pages[name])))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={max(width, 800)},1000", "--hide-scrollbars", "--dump-dom"]
    command += [f"file://{tmp_path / 'probe.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="found">(\{.*?\})</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert found["width"] <= width
    assert found["num_texts"] > 100
    assert found["cut"] == []
    assert found["smallest"] >= SMALLEST_TEXT
    assert found["wide"] == []
    assert found["unshown"] == 0
    assert found["num_images"] == {"plain": 72, "long": 0, "both": 72}[name]


def test_it_prints(chromium: str, pages: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(pages["both"])
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--print-to-pdf={tmp_path / 'page.pdf'}", f"file://{tmp_path / 'page.html'}"]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")

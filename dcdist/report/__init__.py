"""`dcdist report`: one HTML file about one run or several, out of what they wrote; needs neither torch nor the net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dcdist.errors import UsageError
from dcdist.report.page import render
from dcdist.report.sections import tell
from dcdist.run_directory import RunDirectory
from dcdist.storage import open_file, open_storage

REPORT = "report.html"


@dataclass(frozen=True)
class WrittenReport:
    """Where the report lies, and its size."""

    url: str
    num_bytes: int

    def line(self) -> str:
        """For the terminal."""
        return f"{self.url} ({self.num_bytes / 1e6:.1f} MB)"


def write_report(urls: Sequence[str], out: str | None = None, data_root: str | None = None) -> WrittenReport:
    """Writes the report of one run, or of several side by side.

    Each run that lacks examples.parquet gets it, where the run's data can be read.

    Args:
        urls: folders of runs, local or any fsspec URLs; at least one.
        out: the file, local or any fsspec URL; by default report.html in the first run.
        data_root: where the images of the runs lie here; by default where their configs say.

    Raises:
        UsageError: one of them is no run, or the file cannot be written.
    """
    stories = [tell(RunDirectory(url), data_root) for url in urls]
    page = render(stories, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")).encode()
    storage, name = open_file(out, "--out=") if out is not None else (open_storage(urls[0]), REPORT)
    try:
        storage.write_bytes(name, page)
    except OSError as error:
        remedy = "Name another file by --out" if out is not None else "Name a file elsewhere by --out"
        raise UsageError(f"{storage.url(name)} cannot be written ({error}). {remedy}") from error
    return WrittenReport(storage.url(name), len(page))

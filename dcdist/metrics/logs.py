"""Log lines of a rank: into the run directory, warnings of rank 0 also to the terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from dcdist.run_directory import RunDirectory
from dcdist.storage import GrowingFile

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _GrowingFileHandler(logging.Handler):
    def __init__(self, file: GrowingFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.append(self.format(record))
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def log_to_run(run_directory: RunDirectory, attempt: int, rank: int) -> Iterator[None]:
    """While it is open, everything that dcdist logs goes to RUN/logs/NNNN-rank-R.log."""
    formatter = logging.Formatter(_FORMAT)
    formatter.converter = time.gmtime
    file = GrowingFile(run_directory.storage, run_directory.log_file(attempt, rank))
    handlers: list[logging.Handler] = [_GrowingFileHandler(file)]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[-1].setLevel(logging.WARNING)
    root = logging.getLogger("dcdist")
    root.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handlers[0])
        try:
            file.close()
        except OSError as error:  # a run that is done stays done
            root.warning("the end of this log is not stored: %s", error)
        for handler in handlers[1:]:
            root.removeHandler(handler)

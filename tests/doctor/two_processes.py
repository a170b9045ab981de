"""What two processes find together."""

from __future__ import annotations

import time
from pathlib import Path

from dcdist.distributed.collectives import Collectives
from dcdist.doctor import run_storage
from dcdist.doctor.check import Budget, Check
from dcdist.doctor.clocks import check_clocks
from dcdist.doctor.group import check_all_reduce
from dcdist.doctor.run_storage import check_storage

CLOCK_OFFSETS = [0.0, -5.0, 100.0]


def checks_of_rank(collectives: Collectives, folder: Path) -> dict[str, list[Check]]:
    run_storage.LOOK_SECONDS = 0.3
    run_dirs = [
        [f"{folder}/a/run"] * 2,
        [f"{folder}/a/run", f"{folder}/b/run"],  # each sees a folder of its own, as on a disk of each machine
        [f"{folder}/file/run", f"{folder}/a/run"],
    ]

    def clocks(offset: float) -> Check:
        if not offset:
            time.sleep(2.5 * collectives.rank)  # a rank that comes late has no wrong clock
        return check_clocks(collectives, None, lambda: time.time() + offset * collectives.rank)

    return {
        "sums": [check_all_reduce(Collectives(collectives.rank, claimed)) for claimed in (2, 3)],
        "clocks": [clocks(offset) for offset in CLOCK_OFFSETS],
        "storage": [check_storage(of_ranks[collectives.rank], collectives, Budget(60)) for of_ranks in run_dirs],
    }

"""How a run stands, from its folder alone: what `dcdist status` prints, once or again and again."""

from dcdist.status.run_status import RunStatus, StatusReader, read_status

__all__ = ["RunStatus", "StatusReader", "read_status"]

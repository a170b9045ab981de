"""python -m dcdist."""

from dcdist.cli import main

main()

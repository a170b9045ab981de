"""Trains and measures every method on the same images, and prints the table of them all.

    python -m benchmarks.methods --data FILE.parquet [--only NAME,...] [--seeds 0,1,2] [--out FILE.json]
    python -m benchmarks.methods --data FILE.parquet --render

A row is a config (every one of configs/catsdogs/) at a seed. Killed at any time, the same
command goes on: rows that are in the file stay, a run that was interrupted resumes. A row is redone when its config or
the images have changed. Raw pixels and untrained networks are rows of their own; labels serve scores alone.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.methods.measure import TrainingFailed, describe_run, measure, train
from benchmarks.methods.rows import RowKey, Rows, config_digest, digest
from benchmarks.methods.table import METHODS, PRETEXTS, READOUTS, Line, render
from dcdist.build.run import open_data
from dcdist.config.load import load_config
from dcdist.config.schema import ExperimentConfig
from dcdist.errors import DcdistError, ExitCode, UsageError
from dcdist.evaluation.feature_sets import PIXELS, TRAINED, UNTRAINED

CHECKOUT = Path(__file__).resolve().parents[2]
# The order of the lines; what is not named here comes after, by name.
ORDER = (
    "deepcluster", "deepcluster_gmm", "deepcluster_pic", "deepcluster_v2", "swav", "simclr",
    "scan", "scan_5_2", "jigsaw", "jigsaw_distractors", "jigsaw_context_tricks", "pretext_deepcluster",
    "jigsaw_then_deepcluster", "joint", "flagship",
)  # fmt: skip
# A table of their own, beside what is named pretext_*: each alone, one after the other, both at once.
PRETEXT_EXPERIMENT = ("jigsaw", "jigsaw_then_deepcluster", "joint")
PRETEXT = "pretext_"


@dataclass(frozen=True)
class Experiment:
    """A config on the images that all of them share."""

    name: str
    path: Path
    config: ExperimentConfig
    fingerprints: list[str]

    def key(self, seed: int) -> RowKey:
        return RowKey(self.name, seed, config_digest(self.config, self.fingerprints))

    def baselines(self, seed: int) -> dict[str, RowKey]:
        """The rows that the experiment is compared with, by feature set; experiments share them."""
        views, model = self.config.resolved_stages()[-1].views, self.config.model
        seen = [views.image_size, views.resize, self.fingerprints]
        pixels, shown = digest(seen), [*views.mean, *views.std, views.standardize]
        network = digest([*seen, shown, model.model_dump(mode="json")])
        name = f"untrained {model.name}" + (" with Sobel" if model.sobel else "")
        return {PIXELS: RowKey(PIXELS, None, pixels, pixels[:4]), UNTRAINED: RowKey(name, seed, network, network[:4])}


def find_experiments(folder: Path, data: str, only: Sequence[str]) -> list[Experiment]:
    """The configs of the folder, in the order of the table. Raises UsageError where a wanted one is missing."""
    names = {path.stem: path for path in folder.glob("catsdogs/[!_]*.yaml")}
    unknown = [name for name in only if name not in names]
    if unknown or not names:
        missing = ", ".join(unknown) or "catsdogs/*.yaml"
        raise UsageError(f"{folder} has no {missing}; there are {', '.join(sorted(names)) or 'none'}")
    wanted = set(only) or set(names)
    ordered = [name for name in ORDER if name in names] + sorted(set(names) - set(ORDER))
    experiments = []
    for name in ordered:
        if name in wanted:
            config = load_config(names[name], [f"data.root={data}"])
            section = config.data
            splits = [section.split] if section.heldout_split is None else [section.split, section.heldout_split]
            fingerprints = [open_data(section, split).fingerprint() for split in splits]
            experiments.append(Experiment(name, names[name], config, fingerprints))
    return experiments


def build_row(experiment: Experiment, seed: int, rows: Rows, data: str, runs: Path) -> None:
    """Trains and measures one experiment at one seed, and what it is compared with, where they are not there yet."""
    key = experiment.key(seed)
    baselines = {name: its_key for name, its_key in experiment.baselines(seed).items() if rows.get(its_key) is None}
    if rows.get(key) is not None and not baselines:
        return
    # A config that has changed is another run: the folder of the old one stays as it is.
    run_dir = runs / f"{experiment.name}-{seed}-{key.digest}"
    train(
        experiment.path,
        [f"run.seed={seed}", f"run.dir={run_dir}", f"data.root={data}", "evaluation.summary=false"],
    )
    described = describe_run(run_dir)
    measured = measure(run_dir, data, [*baselines, TRAINED])
    for name, baseline in baselines.items():
        rows.add(baseline, measured[name])
    rows.add(key, {**described, **measured[TRAINED]})


def report(experiments: Sequence[Experiment], seeds: Sequence[int], rows: Rows) -> str:
    """All tables, from the rows that are there."""

    def lines(chosen: Sequence[Experiment]) -> list[Line]:
        baselines: dict[str, list[RowKey]] = {}  # of each line the rows that it wants
        for key in {key: None for seed in seeds for one in chosen for key in one.baselines(seed).values()}:
            baselines.setdefault(key.line, []).append(key)
        wanted = sorted(baselines.values(), key=lambda keys: keys[0].name != PIXELS)
        wanted += [[one.key(seed) for seed in seeds] for one in chosen]
        names = [keys[0].name for keys in wanted]
        titles = [keys[0].name if names.count(keys[0].name) == 1 else keys[0].line for keys in wanted]
        found = [[row for row in map(rows.get, keys) if row] for keys in wanted]
        return [Line(title, its_rows) for title, its_rows in zip(titles, found, strict=True)]

    methods = [one for one in experiments if not one.name.startswith(PRETEXT)]
    pretexts = [one for one in experiments if one.name.startswith(PRETEXT) or one.name in PRETEXT_EXPERIMENT]
    tables = []
    if methods:
        tables += [
            "The run's own final clusters (of pixels and untrained networks those of the same read-out); kNN (k = 20) "
            "and a linear classifier on test images:"
        ]
        tables += [render(lines(methods), METHODS), "The same read-outs of all, as many clusters as classes:"]
        tables += [render(lines(methods), READOUTS)]
    if pretexts:
        tables += ["Pretexts alone, in sequence and joint:", render(lines(pretexts), PRETEXTS)]
    return "\n\n".join(tables)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the images that all rows share (data.root)")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "benchmarks" / "results" / "catsdogs.json")
    parser.add_argument("--only", default="", metavar="NAME,...", help="configs; by default all that there are")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--render", action="store_true", help="print the tables; train and measure nothing")
    parser.add_argument("--configs", type=Path, default=CHECKOUT / "configs", help="folder of the configs")
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / "methods", help="folder of the runs")
    given = parser.parse_args(arguments)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    try:
        experiments = find_experiments(given.configs, given.data, [name for name in given.only.split(",") if name])
    except UsageError as error:
        parser.error(str(error))
    rows = Rows(given.out)
    failures = []
    for seed in [] if given.render else seeds:  # every method once before any twice
        for experiment in experiments:
            try:
                build_row(experiment, seed, rows, given.data, given.runs)
            except (TrainingFailed, DcdistError) as error:  # the other rows do not depend on it
                failures.append(f"{experiment.name}, seed {seed}: {error}")
    print(report(experiments, seeds, rows))
    for failure in failures:
        print(f"not measured: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(ExitCode.RUN_AGAIN)))
    sys.exit(main())

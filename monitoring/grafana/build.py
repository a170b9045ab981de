"""Writes the dashboards: python -m monitoring.grafana.build

The committed files are what this writes; a test compares them.
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from monitoring.grafana import clusters, fleet, resources, run
from monitoring.grafana.parts import DASHBOARDS, SOURCE, TAG, Board, expand

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = {"fleet": fleet.board, "run": run.board, "clusters": clusters.board, "resources": resources.board}

# A query each; all but the data source are of several values, so that runs can be compared.
VARIABLES = {
    "run": "label_values(dcdist_build_info, run)",
    "stage": 'label_values(dcdist_progress_steps{run=~"$run"}, stage)',
    "head": 'label_values(dcdist_clusters{run=~"$run", stage=~"$stage"}, head)',
    "job": "label_values(dcdist_build_info, job)",
}

# One event where a count is above that of a step before. A restart is a new target after a time without one.
RESTARTS = """
    max by (run) (dcdist_restarts{run})
    > max by (run) (last_over_time(dcdist_restarts{run}[1d] offset $__interval))
"""
CLUSTERINGS = """
    sum by (run) (dcdist_clusterings_total{run}) > sum by (run) (dcdist_clusterings_total{run} offset $__interval)
"""


def variable(name: str) -> dashboard.QueryVariable:
    """Values of a label; all of them at first. "All" is short however many there are, but of jobs: others have some."""
    query = dashboard.QueryVariable(name).label(name.capitalize()).datasource(SOURCE).query(VARIABLES[name])
    query.multi(True).include_all(True).current(models.VariableOption(text="All", value="$__all"))
    if name != "job":
        query.all_value(".*")
    return query.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.NATURAL_ASC)


class Event(models.AnnotationQuery):
    """An annotation that says which run it is of; Grafana's models do not know these two fields."""

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {"titleFormat": self.name, "textFormat": "{{run}}"}


def annotation(name: str, expression: str, color: str) -> Event:
    return Event(name=name, datasource=SOURCE, enable=True, icon_color=color, expr=expand(expression))


def built(board: Board) -> models.Dashboard:
    """The dashboard of a board."""
    result = dashboard.Dashboard(DASHBOARDS[board.uid]).uid(board.uid).description(" ".join(board.about.split()))
    result.tags([TAG]).timezone("browser").time(board.time_from, "now").refresh("30s").editable()
    result.tooltip(models.DashboardCursorSync.CROSSHAIR)
    result.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name in board.variables:
        result.with_variable(variable(name))
    link = dashboard.DashboardLink("dcdist").type(models.DashboardLinkType.DASHBOARDS).tags([TAG]).as_dropdown(False)
    result.link(link.include_vars(True).keep_time(True))
    for title, panels in board.rows.items():
        result.with_row(dashboard.Row(title))
        for panel in panels:
            result.with_panel(panel)
    events: list[models.AnnotationQuery] = [annotation("Restart", RESTARTS, "orange")]
    if "stage" in board.variables:
        events.append(annotation("Clustering", CLUSTERINGS, "light-blue"))
    made = result.build()
    made.annotations = models.AnnotationContainer(list_val=events)
    for number, part in enumerate(made.panels or (), start=1):
        part.id_val = number  # rows would all have 0
    return made


def encoded(name: str) -> str:
    """JSON of a dashboard, by the name of its file."""
    return JSONEncoder(sort_keys=True, indent=2).encode(built(BOARDS[name]())) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in BOARDS:
        text = encoded(name)
        (FOLDER / f"{name}.json").write_text(text)
        print(f"{name}: {len(json.loads(text)['panels'])} panels")


if __name__ == "__main__":
    main()

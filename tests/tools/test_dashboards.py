"""The dashboards: their JSON is what the generator writes, and their queries use what the operator measures."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import dashboards
import pytest
from grafana_foundation_sdk.models import units
from observability import answers
from observability.answers import expanded
from observability.dashboards import DASHBOARDS, FOLDER, as_json
from observability.model import Dashboard, Kind

from fedpipe_operator.metrics.catalogue import CATALOGUE, Type

_OTHERS: Final = ("up", "process_", "DCGM_FI_")
"""What Prometheus, its client library and NVIDIA's exporter measure."""
_UNITS: Final = {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("_")}
_KEPT: Final = ("release", "namespace", "run", "site", "job", "__rate_interval")
"""The variables that a query may use."""


def names_in(expr: str) -> set[str]:
    """The metrics of a query: the words before a brace or a bracket, and others with our prefix."""
    bare = re.sub(r'"[^"]*"', "", expr)
    return set(re.findall(r"([A-Za-z_]\w*)\{", bare)) | set(re.findall(r"\bfedpipe_\w+", bare))


def series_of_the_catalogue() -> dict[str, set[str]]:
    """The labels of every series that the catalogue's metrics have."""
    found: dict[str, set[str]] = {}
    for metric in CATALOGUE:
        labels = {*metric.labels, "release", "job", "instance"}
        found |= (
            {metric.name + suffix: labels | ({"le"} if suffix == "_bucket" else set()) for suffix in ("_bucket", "_sum", "_count")}
            if metric.type is Type.HISTOGRAM
            else {metric.name: labels}
        )
    return found


@pytest.mark.parametrize("one", DASHBOARDS, ids=lambda one: one.uid)
def test_the_chart_has_the_json_that_the_generator_writes(one: Dashboard) -> None:
    assert (FOLDER / f"{one.uid}.json").read_text() == as_json(one), "run python tools/dashboards.py write"


def test_the_chart_has_no_other_dashboard() -> None:
    assert (
        {file.stem for file in FOLDER.iterdir()}
        == {one.uid for one in DASHBOARDS}
        == {f"fedpipe-{n}" for n in ("fleet", "run", "operator")}
    )


@pytest.mark.parametrize("one", DASHBOARDS, ids=lambda one: one.uid)
def test_every_query_uses_metrics_of_the_catalogue_and_labels_that_they_have(one: Dashboard) -> None:
    series = series_of_the_catalogue()
    queries = [query.expr for panel in one.panels() for query in panel.queries]
    for text in [*queries, *(variable.query.removeprefix("label_values(") for variable in one.variables)]:
        unknown = [name for name in names_in(text) if name not in series and not name.startswith(_OTHERS)]
        assert unknown == [], text
        for name, selector in re.findall(r"(fedpipe_\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)[=!]~?\"", selector)) <= series[name], text


@pytest.mark.parametrize("one", DASHBOARDS, ids=lambda one: one.uid)
def test_a_panel_says_what_it_shows_in_its_unit(one: Dashboard) -> None:
    titles = [panel.title for panel in one.panels()]

    assert len(titles) == len(set(titles))
    for panel in one.panels():
        assert panel.description.endswith((".", ")")), panel.title
        assert len(panel.description) > 40, panel.title
        assert panel.unit in _UNITS, panel.title
        assert all(query.legend for query in panel.queries), panel.title
        assert all(low.value < high.value for low, high in pairwise(panel.thresholds)), panel.title


@pytest.mark.parametrize("one", DASHBOARDS, ids=lambda one: one.uid)
def test_every_variable_of_a_query_is_a_choice_of_its_dashboard(one: Dashboard) -> None:
    choices = {variable.name: ".*" for variable in one.variables} | {"__rate_interval": "1m"}

    assert set(choices) <= set(_KEPT)
    for panel in one.panels():
        for query in panel.queries:
            assert "$" not in expanded(query.expr, choices)


@pytest.mark.parametrize("one", DASHBOARDS, ids=lambda one: one.uid)
def test_grafana_finds_each_panel_by_an_id_on_a_place_of_its_own(one: Dashboard) -> None:
    panels: list[dict[str, Any]] = json.loads(as_json(one))["panels"]
    places = {(x, y) for panel in panels for x, y in cells(panel["gridPos"])}

    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    assert len(places) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels)
    assert all(x < 24 for x, _ in places)


def cells(place: dict[str, int]) -> list[tuple[int, int]]:
    return [(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])]


@pytest.mark.parametrize("one", DASHBOARDS, ids=lambda one: one.uid)
def test_every_panel_asks_the_chosen_data_source_and_says_when_it_has_no_data(one: Dashboard) -> None:
    document = json.loads(as_json(one))
    panels = [panel for panel in document["panels"] if panel["type"] != "row"]

    assert document["templating"]["list"][0]["type"] == "datasource"
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert all(panel["fieldConfig"]["defaults"]["noValue"].startswith("No data") for panel in panels)
    assert [panel["targets"][0]["instant"] for panel in panels] == [panel.kind is not Kind.LINES for panel in one.panels()]


def test_a_snapshot_is_a_picture_of_each_dashboard_with_the_chosen_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(url: str, what: str, **arguments: str | float) -> list[dict[str, Any]]:
        asked.append(f"{url} {arguments['query']}")
        point = [1000.0, "0.5"]
        return [{"metric": {"namespace": "wards", "run": "triage"}, **({"values": [point]} if what == "query_range" else {"value": point})}]

    monkeypatch.setattr(answers, "ask", ask)

    dashboards.main(["snapshot", "http://prometheus:9090", "wards", "triage", str(tmp_path / "new")])

    pictures = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert pictures.keys() == {f"{one.uid}.svg" for one in DASHBOARDS}
    assert ">wards/triage<" in pictures["fedpipe-fleet.svg"]
    assert all(one.startswith("http://prometheus:9090 ") for one in asked)
    assert any('run=~"triage"' in one or 'run="triage"' in one for one in asked)


def test_a_wrong_command_prints_how_it_is_used() -> None:
    with pytest.raises(SystemExit, match=r"dashboards\.py write"):
        dashboards.main(["snapshot", "http://prometheus:9090"])

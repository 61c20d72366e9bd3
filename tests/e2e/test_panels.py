"""The queries of the dashboards, asked of a real Prometheus that scrapes a stand-in for the operator. Needs no cluster."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest
from catalogue_exporter import catalogue_exporter
from cluster_user import wait_until
from observability.answers import Source, ask
from observability.dashboards import DASHBOARDS
from observability.model import Panel
from prometheus import prometheus

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

PANELS: Final = [pytest.param(panel, id=f"{one.uid}: {panel.title}") for one in DASHBOARDS for panel in one.panels()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A Prometheus that has scraped the stand-in a few times, as the operators of two releases."""
    with catalogue_exporter() as address:
        targets = [{"targets": [address], "labels": {"release": release}} for release in ("wards/fedpipe", "labs/fedpipe")]
        scrape = {"job_name": "fedpipe", "honor_labels": True, "static_configs": targets}
        with prometheus(tmp_path_factory.mktemp("prometheus"), [scrape]) as url:
            wait_until(lambda: ask(url, "query", query="min(count_over_time(fedpipe_leader[1m])) > 3"), "four scrapes", seconds=30)
            choices = {"release": ".*", "namespace": "namespace", "run": "run", "site": ".*", "job": ".*", "__rate_interval": "1m"}
            yield Source(url, choices, seconds=20)


@pytest.mark.parametrize("panel", PANELS)
def test_every_query_of_a_panel_finds_the_metrics_of_the_catalogue(source: Source, panel: Panel) -> None:
    answers = source.answers(panel)

    # DCGM's labels have one of two forms; Prometheus has them in one.
    found = [bool(series) for series in answers]
    assert any(found) if "DCGM" in panel.queries[0].expr else all(found)


@pytest.mark.parametrize("panel", [panel for panel in PANELS if "GPU" not in str(panel.id)])
def test_a_panel_shows_the_chosen_release_alone(source: Source, panel: Panel) -> None:
    of_nobody = replace(source, variables={**source.variables, "release": "nobody/fedpipe"})

    assert [series for query in of_nobody.answers(panel) for series in query if any(value for _, value in series.points)] == []


def test_of_two_releases_each_has_its_operator(source: Source) -> None:
    panel = next(panel for one in DASHBOARDS for panel in one.panels() if panel.title == "Operators that reconcile")
    (both,) = source.answers(panel)
    (one,) = replace(source, variables={**source.variables, "release": "labs/fedpipe"}).answers(panel)

    assert sorted(series.labels["release"] for series in both) == ["labs/fedpipe", "wards/fedpipe"]
    assert [series.labels["release"] for series in one] == ["labs/fedpipe"]

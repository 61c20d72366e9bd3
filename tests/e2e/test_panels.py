"""The queries of the dashboards, asked of a real Prometheus that scrapes a stand-in for the operator. Needs no cluster."""

from collections.abc import Iterator
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
    """A Prometheus that has scraped the stand-in a few times."""
    with catalogue_exporter() as address:
        scrape = {"job_name": "fedpipe", "honor_labels": True, "static_configs": [{"targets": [address]}]}
        with prometheus(tmp_path_factory.mktemp("prometheus"), [scrape]) as url:
            wait_until(lambda: ask(url, "query", query="count_over_time(fedpipe_leader[1m]) > 3"), "four scrapes", seconds=30)
            choices = {"namespace": "namespace", "run": "run", "site": ".*", "job": ".*", "__rate_interval": "1m"}
            yield Source(url, choices, seconds=20)


@pytest.mark.parametrize("panel", PANELS)
def test_every_query_of_a_panel_finds_the_metrics_of_the_catalogue(source: Source, panel: Panel) -> None:
    answers = source.answers(panel)

    # DCGM's labels have one of two forms; Prometheus has them in one.
    found = [bool(series) for series in answers]
    assert any(found) if "DCGM" in panel.queries[0].expr else all(found)

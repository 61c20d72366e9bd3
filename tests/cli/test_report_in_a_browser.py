"""The report of a real run on this machine, served as the operator serves it and opened in Debian's Chromium."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import opened_browser
from local_runs import Fleet
from report_servers import served

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.report_server.answers import Reporter
from fedpipe_operator.report_server.drawing import Drawer
from fedpipe_operator.report_server.gate import Access
from fedpipe_operator.report_server.reports import Reports
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials
from fedpipe_operator.store.address import DirectoryAddress

pytestmark = pytest.mark.slow


def object_of(fleet: Fleet) -> dict[str, Any]:
    """The run as a cluster would have it, with its status."""
    documents = yaml.safe_load_all((fleet.folder / "run.yaml").read_text())
    run = FederatedFineTune.model_validate(next(one for one in documents if one["kind"] == "FederatedFineTune"))
    whole = RunFolder(fleet.store.parents[2], run).read_only()
    found: dict[str, Any] = json.loads(whole.model_dump_json(by_alias=True, exclude_none=True))
    return found


def test_the_report_of_a_real_run_shows_every_round_plan_and_figure(finished: tuple[Fleet, str], tmp_path: Path) -> None:
    fleet, body = finished[0], object_of(finished[0])

    def locate(_run: Run) -> tuple[DirectoryAddress, Credentials]:
        return DirectoryAddress(root=str(fleet.store)), Credentials("no key", "is needed")

    pages = tmp_path / "pages"
    pages.mkdir()
    reports = Reports(lambda _namespace, _name: body, locate, Drawer(pages))
    reporter = Reporter(lambda *_: Access.ALLOWED, lambda namespace, name: reports.page(namespace, name, seconds=60.0))
    with served(reporter) as port, opened_browser(tmp_path / "browser") as browser:
        browser.resize(1280, 900)
        browser.open(f"http://localhost:{port}/default/toy")
        browser.write("#token", "a-token")
        browser.submit("button")
        complaints = [one for one in browser.complaints() if "/favicon.ico" not in one and "status of 401" not in one]
        figures = browser.run("return Object.keys(JSON.parse(document.getElementById('figures').textContent))")
        drawn = browser.run(
            "return [...document.querySelectorAll('[id^=figure-]')].filter(one => one.querySelector('svg.main-svg')).length"
        )

        for width, theme in ((1280, "light"), (390, "dark")):
            browser.resize(width, 900)
            browser.theme(theme)
            if pictures := os.environ.get("FEDPIPE_PICTURES"):
                browser.picture(Path(pictures) / f"real-{width}.png")
            assert browser.run("return document.documentElement.scrollWidth") <= width

        assert browser.texts("#rounds tr td:first-child") == ["1", "2"]
        assert browser.texts("#why h3") == [f"The plan of {site}, and why" for site in ("north", "south", "west")]
        assert browser.texts("#comparison td:first-child")[-1].startswith("federated")

    assert complaints == []
    assert {"metric", "loss", "training", "timeline", "forecast", "plan", "importance", "learned", "energy"} <= set(figures)
    assert drawn == len(figures)

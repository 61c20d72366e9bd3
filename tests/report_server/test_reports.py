"""Which report is drawn, from where, and when again."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from report_servers import StandInReviews, reporter_of
from stand_in_cluster import SETTINGS, KubeWorld
from stand_in_runs import a_run

from fedpipe_operator.api import FederatedFineTune, StoreSpec
from fedpipe_operator.cluster.objects import read_body
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.report_server.draw import DrawingTask
from fedpipe_operator.report_server.drawing import Drawer
from fedpipe_operator.report_server.reports import Reports, shown_version
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials
from fedpipe_operator.store.address import DirectoryAddress


def versions_of(world: KubeWorld) -> list[str]:
    """What the report of a run shows after each of its reconciles."""
    found = list[str]()
    for _ in range(300):
        world.reconcile()
        for name in world.active_jobs():
            world.work(name)
        world.await_workers()
        resource = read_body(world.body(), FederatedFineTune)
        assert isinstance(resource, FederatedFineTune)
        found.append(shown_version(resource))
        if found[-1].endswith(("Complete", "Failed")):
            return found
    raise AssertionError(f"the run does not end: {world.body()['status']}")


def test_a_report_is_drawn_once_a_round_and_for_the_first_plan_and_the_end(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(rounds={"count": 3, "deadline": "10m"}))

    assert list(dict.fromkeys(versions_of(world))) == ["0 False ", "0 True ", "1 True ", "2 True ", "3 True ", "3 True Complete"]


def test_a_run_whose_default_store_has_changed_is_not_read_from_another(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(store=None), settings=replace(SETTINGS, default_store=StoreSpec(bucket="fedpipe")))
    world.work_until("train-r1")
    world.settings = replace(SETTINGS, default_store=StoreSpec(bucket="another"))
    reporter = reporter_of(world, StandInReviews(), tmp_path)

    with pytest.raises(UserError, match=r"StoreMoved: its results are in s3://fedpipe/fedpipe/default/toy/uid-1, "):
        reporter.page("default", "toy")


def never(_run: Run) -> tuple[DirectoryAddress, Credentials]:
    raise AssertionError("the store was looked for")


def test_a_run_with_an_invalid_spec_has_no_report_and_is_told_why(tmp_path: Path) -> None:
    body = {"metadata": {"namespace": "default", "name": "toy", "uid": "u"}, "spec": {"model": {}}}
    reports = Reports(lambda _namespace, _name: body, never, Drawer(tmp_path))

    with pytest.raises(UserError, match="SpecInvalid: default/toy: "):
        reports.page("default", "toy", seconds=0.0)


def test_a_run_that_is_not_watched_has_no_report(tmp_path: Path) -> None:
    assert Reports(lambda _namespace, _name: None, never, Drawer(tmp_path)).page("default", "toy", seconds=0.0) is None


def test_a_report_that_is_not_there_yet_can_be_asked_for_again(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()

    def locate(_run: Run) -> tuple[DirectoryAddress, Credentials]:
        return DirectoryAddress(root=str(tmp_path / "stores" / "uid-1")), Credentials("a", "b")

    reports = Reports(lambda _namespace, _name: world.body(), locate, Drawer(tmp_path))
    with pytest.raises(TransientError, match="ReportBeingDrawn"):
        reports.page("default", "toy", seconds=0.0)
    page = reports.page("default", "toy", seconds=60.0)

    assert page is not None
    assert page.file.exists()


def draw(folder: Path, task: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fedpipe_operator.report_server.draw", str(folder / "page.html.gz")]
    return subprocess.run(command, input=task, capture_output=True, text=True, check=False)


def a_task(root: Path) -> str:
    return DrawingTask(store=DirectoryAddress(root=str(root)), run=a_run().resource).to_json()


def test_the_process_that_draws_has_a_bound_of_memory() -> None:
    program = """
from fedpipe_operator.report_server import draw
try:
    draw.main([""])
except SystemExit:
    pass
try:
    bytearray(2**30)
except MemoryError:
    print("bounded")
"""
    done = subprocess.run([sys.executable, "-c", program], input="{}", capture_output=True, text=True, check=True)

    assert done.stdout == "bounded\n"


def test_what_is_damaged_in_the_store_stops_no_drawing(tmp_path: Path) -> None:
    (tmp_path / "rounds" / "0001").mkdir(parents=True)
    (tmp_path / "rounds" / "0001" / "plan.json").write_text("{")

    assert draw(tmp_path, a_task(tmp_path)).returncode == 0


def test_a_failure_ends_with_one_line_for_the_caller(tmp_path: Path) -> None:
    task = json.loads(a_task(tmp_path))
    task["store"] = {"kind": "s3", "bucket": "fedpipe", "prefix": "x", "endpoint": "http://127.0.0.1:1", "api_servers": []}
    done = draw(tmp_path, json.dumps(task))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(("CredentialsMissing: ", "AddressRefused: "))
    assert not (tmp_path / "page.html.gz").exists()


def test_the_operator_s_own_process_never_imports_what_draws() -> None:
    program = "import fedpipe_operator.__main__, sys; print([name for name in ('plotly', 'jinja2') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"

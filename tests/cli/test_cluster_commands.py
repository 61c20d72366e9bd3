"""The commands for a run on a cluster: against a stand-in for the API server; tests/e2e has them on a real one."""

from pathlib import Path
from typing import Any

import pytest
from stand_in_cluster import KubeWorld
from typer.testing import CliRunner, Result

from fedpipe_operator.cli import app_for, cluster_run, status
from fedpipe_operator.cli.events import last_seen, line
from fedpipe_operator.cli.logs import container, shown
from fedpipe_operator.cluster.api import EVENTS, PODS, KubeContext
from fedpipe_operator.errors import TransientError
from fedpipe_operator.store import DirectoryStore

Plain = dict[str, Any]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubeWorld:
    """A cluster on which a run is training in round 1, to which the kubeconfig's context leads."""
    world = KubeWorld(tmp_path)
    world.work_until("train-r1")
    store = DirectoryStore(tmp_path / "stores" / "uid-1")
    monkeypatch.setattr(cluster_run, "of_kubeconfig", lambda _context: KubeContext(world.api, "default"))  # type: ignore[arg-type]
    monkeypatch.setattr(cluster_run.ClusterRun, "open_store", lambda _run, _endpoint: store)
    return world


def fedpipe(*arguments: str) -> Result:
    return CliRunner().invoke(app_for(arguments), arguments)


def test_status_says_what_the_run_does_and_which_plans_it_has(world: KubeWorld) -> None:
    del world
    done = fedpipe("status", "toy")

    assert done.exit_code == 0
    assert done.output.startswith("default/toy: Training, round 1 of 2, 0 of 3 needed updates")
    assert "site-a         plan: 16 bits, rank 4" in done.output


def test_a_watch_ends_with_the_run_and_tells_each_change_once(world: KubeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "sleep", lambda _seconds: world.settle())

    done = fedpipe("status", "toy", "--watch")

    assert done.exit_code == 0
    assert [text.partition(",")[0] for text in done.output.splitlines() if text.startswith("default/")] == [
        "default/toy: Training",
        "default/toy: RoundsCompleted",
    ]
    assert done.output.count("round 1: 3/3 updates") == 1


def test_a_watch_survives_a_lost_request(world: KubeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_one(_seconds: float) -> None:
        if "get federatedfinetunes" in world.api.trouble:
            del world.api.trouble["get federatedfinetunes"]
            world.settle()
        else:
            world.api.trouble["get federatedfinetunes"] = TransientError("ApiUnavailable", "no route to host")

    monkeypatch.setattr(status, "sleep", lose_one)

    done = fedpipe("status", "toy", "--watch")

    assert done.exit_code == 0
    assert "ApiUnavailable: no route to host" in done.output


def test_a_run_that_no_operator_has_seen_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = KubeWorld(tmp_path)
    monkeypatch.setattr(cluster_run, "of_kubeconfig", lambda _context: KubeContext(world.api, "default"))  # type: ignore[arg-type]

    assert fedpipe("status", "toy").output == "default/toy: no operator has seen this version of it yet\n"


@pytest.mark.parametrize("command", [("status", "other"), ("events", "other"), ("logs", "other"), ("plan", "other", "-n", "default")])
def test_a_run_that_does_not_exist_is_an_error_that_says_how_to_find_it(world: KubeWorld, command: tuple[str, ...]) -> None:
    del world
    done = fedpipe(*command)

    assert done.exit_code == 1
    assert done.stderr == "RunMissing: there is no FederatedFineTune other in the namespace default: kubectl get fft -A lists them\n"


def test_the_plan_of_a_run_on_a_cluster_is_explained_as_on_one_machine(world: KubeWorld) -> None:
    del world
    done = fedpipe("plan", "toy", "-n", "default")

    assert done.exit_code == 0
    assert "limit: what keeps the site from doing more" in done.output
    assert "site-c" in done.output


def test_the_report_of_a_run_on_a_cluster_is_written_beside_those_of_this_machine(world: KubeWorld, tmp_path: Path) -> None:
    del world
    done = fedpipe("report", "toy", "-n", "default", "--output", str(tmp_path))

    assert done.output == f"{tmp_path}/default/toy/report.html\n"
    assert "site-a" in (tmp_path / "default" / "toy" / "report.html").read_text()


def test_one_run_is_named_where_a_namespace_is(world: KubeWorld) -> None:
    del world
    done = fedpipe("plan", "toy", "other", "-n", "default")

    assert (done.exit_code, done.stderr) == (2, "with --namespace, give the name of one run\n")


def an_event(reason: str, uid: str, time: str, **fields: Any) -> Plain:
    about = {"kind": "Pod", "name": "toy-x", "uid": uid}
    told = {"involvedObject": about, "reason": reason, "message": "so it is", "lastTimestamp": time}
    return {"metadata": {"name": f"e-{reason}"}} | told | fields


def test_events_of_the_run_and_of_its_pods_come_in_the_order_of_their_times(world: KubeWorld) -> None:
    pod = {"metadata": {"name": "toy-x", "labels": {"fedpipe.io/run-uid": "uid-1"}, "uid": "pod-1"}}
    world.api.apply(PODS, "default", pod)
    world.api.objects = {key: one for key, one in world.api.objects.items() if key[0] != EVENTS.plural}
    for event in (
        an_event("Later", "pod-1", "2026-01-02T00:00:00Z", count=3),
        an_event("Earlier", "uid-1", "2026-01-01T00:00:00Z"),
        an_event("Foreign", "another", "2026-01-01T00:00:00Z"),
    ):
        world.api.apply(EVENTS, "default", event)

    assert fedpipe("events", "toy").output.splitlines() == [
        "2026-01-01T00:00:00  Earlier  Pod/toy-x: so it is",
        "2026-01-02T00:00:00  Later  Pod/toy-x: so it is (3 times)",
    ]


def test_an_event_of_a_series_has_another_time() -> None:
    event = an_event("New", "uid-1", "", eventTime="2026-01-01T00:00:00.000001Z")

    assert (last_seen(event), line(event)[:19]) == ("2026-01-01T00:00:00.000001Z", "2026-01-01T00:00:00")


def test_a_line_of_a_log_has_its_task_round_and_site(world: KubeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"fedpipe.io/run-uid": "uid-1", "fedpipe.io/task": "train", "fedpipe.io/round": "2", "fedpipe.io/attempt": "1"}
    for site in ("north", "south"):
        pod = {"metadata": {"name": f"toy-{site}", "labels": labels | {"fedpipe.io/site": site}}}
        world.api.apply(PODS, "default", pod)
    monkeypatch.setattr(world.api, "log", lambda _namespace, pod, container, *, lines: f"{pod} {container} {lines}\nends", raising=False)

    assert fedpipe("logs", "toy", "--site", "north", "--tail", "7").output.splitlines() == [
        "[train r2 north a1] toy-north trainer 7",
        "[train r2 north a1] ends",
    ]
    assert fedpipe("logs", "toy", "--round", "9").output.startswith("there are no such pods")


@pytest.mark.parametrize(("task", "expected"), [("train", "trainer"), ("export", "trainer"), ("aggregate", "worker")])
def test_of_a_pod_with_injected_containers_the_log_of_our_own_is_shown(task: str, expected: str) -> None:
    assert container({"metadata": {"labels": {"fedpipe.io/task": task}}}) == expected


IN_JSON = '{"timestamp": "2026-01-01T00:00:00.000Z", "severity": "error", "message": "it fails", "site": "north", "exception": "E\\nat f"}'


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (IN_JSON, ["2026-01-01T00:00:00.000Z ERROR   it fails", "E", "at f"]),
        ("a library prints\n\n" + IN_JSON[:-1], ["a library prints", IN_JSON[:-1]]),
        ('{"a": 1}\n[1]\n"message"', ['{"a": 1}', "[1]", '"message"']),
        ("[" * 100_000, ["[" * 8192]),
        ('{"message": "\\u001b]0;hello\\u0007"}', ["\ufffd]0;hello\ufffd"]),
        ("\x1b[2J\u202egnorw", ["\ufffd[2J\ufffdgnorw"]),
    ],
    ids=["JSON", "not JSON", "other JSON", "deep JSON", "a sequence in JSON", "a sequence"],
)
def test_a_log_is_shown_for_people_and_cannot_steer_their_terminal(log: str, expected: list[str]) -> None:
    assert list(shown(log)) == expected

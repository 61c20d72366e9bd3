"""`fedpipe logs --follow`: against a stand-in for the API server, whose time passes while the command waits; tests/e2e has a real one."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stand_in_cluster import KubeWorld
from typer.testing import CliRunner, Result

from fedpipe_operator.cli import app_for, cluster_run, logs
from fedpipe_operator.cluster.api import PODS, RUNS, Kind, KubeContext
from fedpipe_operator.errors import FedPipeError, TransientError, UserError

Plain = dict[str, Any]


@dataclass
class Followed:
    """A cluster on which the run toy is training, and what happens at each pause of the command."""

    world: KubeWorld
    written: dict[str, list[str]] = field(default_factory=dict)
    """The lines of each pod's log, with their times."""
    trouble: dict[str, FedPipeError] = field(default_factory=dict)
    """What reading a pod's log raises."""
    limit: int = 100
    """How many lines of a log are read at once."""
    forbidden: set[str] = field(default_factory=set)
    """Namespaces whose pods the user may not list; "": of all."""
    steps: Iterator[Callable[[], None]] = field(default_factory=lambda: iter(()))

    def follow(self, *options: str, steps: tuple[Callable[[], None], ...] = ()) -> Result:
        """The command; after these steps the run completes."""
        self.steps = iter(steps)
        arguments = ("logs", "toy", "--follow", *options)
        return CliRunner().invoke(app_for(arguments), arguments)

    def pause(self, _seconds: float) -> None:
        next(self.steps, self.world.settle)()

    def pod(self, name: str, labels: Plain, *, namespace: str = "default", container: str = "trainer", state: str = "running") -> None:
        status = {"phase": "Running", "containerStatuses": [{"name": container, "state": {state: {}}}]}
        meta = {"name": name, "namespace": namespace, "uid": f"uid-of-{name}", "labels": labels}
        self.world.api.apply(PODS, namespace, {"metadata": meta, "status": status})

    def trainer(self, site: str, state: str = "running") -> None:
        labels = {"fedpipe.io/run-uid": "uid-1", "fedpipe.io/task": "train", "fedpipe.io/round": "1", "fedpipe.io/site": site}
        self.pod(site, labels, state=state)

    def operator(self, *lines: Plain) -> None:
        labels = {"app.kubernetes.io/component": "operator", "helm.sh/chart": "fedpipe-0.1.0"}
        self.pod("fedpipe-x", labels, namespace="ops", container="operator")
        self.write("fedpipe-x", *map(json.dumps, lines))

    def write(self, pod: str, *lines: str) -> None:
        """Each line a second after the last one of all pods."""
        for line in lines:
            number = sum(map(len, self.written.values()))
            self.written.setdefault(pod, []).append(f"2026-01-01T00:00:{number:02}.000000000Z {line}")

    def log_since(self, namespace: str, pod: str, container: str, *, since: str, lines: int | None) -> tuple[str, bool]:
        if pod in self.trouble:
            raise self.trouble.pop(pod)
        assert (namespace, container) == (("ops", "operator") if pod == "fedpipe-x" else ("default", "trainer"))
        found = self.written.get(pod, [])
        wanted = [line for line in found if line >= since.removesuffix("Z")] if since else found[-(lines or 0) :]
        return "".join(f"{line}\n" for line in wanted[: self.limit]), len(wanted) > self.limit


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Followed:
    world = KubeWorld(tmp_path)
    world.work_until("train-r1")
    followed, find = Followed(world), world.api.find

    def find_what_may_be_seen(kind: Kind, namespace: str, **selected: Any) -> list[Plain]:
        if namespace in followed.forbidden:
            raise UserError("ApiForbidden", "no")
        return find(kind, namespace, **selected)

    monkeypatch.setattr(cluster_run, "of_kubeconfig", lambda _context: KubeContext(world.api, "default"))  # type: ignore[arg-type]
    monkeypatch.setattr(world.api, "log_since", followed.log_since, raising=False)
    monkeypatch.setattr(world.api, "find", find_what_may_be_seen)
    monkeypatch.setattr(logs, "sleep", followed.pause)
    return followed


def test_lines_are_shown_as_they_are_written_also_of_pods_that_start_later_until_the_run_ends(followed: Followed) -> None:
    followed.trainer("north")
    followed.write("north", "loads", "trains")

    def one_ends_and_another_starts() -> None:
        followed.write("north", "uploads")
        followed.trainer("north", "terminated")
        followed.trainer("south")
        followed.write("south", "loads")

    def the_second_ends() -> None:
        followed.write("south", "uploads")
        followed.trainer("south", "terminated")

    done = followed.follow(steps=(one_ends_and_another_starts, the_second_ends))

    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "[train r1 north a0] loads",
        "[train r1 north a0] trains",
        "[train r1 north a0] uploads",
        "[train r1 south a0] loads",
        "[train r1 south a0] uploads",
    ]


def test_what_several_pods_write_is_in_the_order_of_its_times(followed: Followed) -> None:
    for site in ("north", "south"):
        followed.trainer(site)
    for site in ("south", "north", "south"):
        followed.write(site, "works")

    shown = followed.follow().stdout.splitlines()

    assert [line.split()[2] for line in shown] == ["south", "north", "south"]


def test_a_pod_whose_container_has_not_started_is_waited_for(followed: Followed) -> None:
    followed.trainer("north", "waiting")
    followed.trouble["north"] = UserError("ApiForbidden", "it was asked for its log")

    done = followed.follow()

    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("there are no such pods: they have not started")


def test_of_the_operator_the_lines_about_the_run_are_shown_with_its_namespace(followed: Followed) -> None:
    followed.operator({"message": "planned", "uid": "uid-1"}, {"message": "another's", "uid": "uid-2"}, {"message": "leads"})
    later = {"timestamp": "2026-01-01T00:00:09Z", "severity": "info", "message": "round 1 trains", "uid": "uid-1"}

    done = followed.follow(steps=(lambda: followed.operator(later),))

    assert done.stdout.splitlines() == ["[operator ops] planned", "[operator ops] 2026-01-01T00:00:09Z INFO    round 1 trains"]


def test_what_is_written_about_the_end_after_the_status_is_shown_too(followed: Followed) -> None:
    followed.operator()
    complete = json.dumps({"message": "complete", "uid": "uid-1"})

    done = followed.follow(steps=(followed.world.settle, lambda: followed.write("fedpipe-x", complete)))

    assert done.stdout == "[operator ops] complete\n"


def test_of_one_site_the_operator_says_nothing(followed: Followed) -> None:
    followed.operator({"message": "planned", "uid": "uid-1"})
    for site in ("north", "south"):
        followed.trainer(site)
        followed.write(site, "works")

    assert followed.follow("--site", "north").stdout.splitlines() == ["[train r1 north a0] works"]


def test_only_the_last_lines_of_each_log_are_shown_at_first_and_then_all(followed: Followed) -> None:
    followed.trainer("north")
    followed.write("north", "1", "2", "3")
    followed.operator(*({"message": f"o{number}", "uid": "uid-1"} for number in range(3)))

    def another_starts_and_writes() -> None:
        followed.trainer("south")
        followed.write("south", "4", "5")

    done = followed.follow("--tail", "1", steps=(another_starts_and_writes,))

    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["3", "o2", "4", "5"]


def test_a_long_log_of_a_pod_that_ended_is_shown_to_its_end_although_the_run_is_over(followed: Followed) -> None:
    followed.trainer("north", "terminated")
    followed.write("north", *map(str, range(7)))
    followed.limit = 2
    followed.world.settle()

    assert [line.split()[-1] for line in followed.follow().stdout.splitlines()] == [str(number) for number in range(7)]


def test_who_may_not_see_all_pods_follows_those_of_the_run_and_is_told_what_to_name(followed: Followed) -> None:
    followed.operator({"message": "planned", "uid": "uid-1"})
    followed.trainer("north")
    followed.write("north", "works")
    followed.forbidden = {""}

    done = followed.follow()

    assert (done.exit_code, done.stdout) == (0, "[train r1 north a0] works\n")
    assert done.stderr == (
        "without the operator's lines: your user may not list pods in all namespaces; give the operator's by --operator-namespace\n"
    )
    assert "[operator ops] planned" in followed.follow("--operator-namespace", "ops").stdout


def test_who_may_list_the_operators_pods_and_not_read_them_is_told_so(followed: Followed) -> None:
    followed.operator({"message": "planned", "uid": "uid-1"})
    followed.trouble["fedpipe-x"] = UserError("ApiForbidden", "no")

    done = followed.follow("--operator-namespace", "ops", steps=(lambda: None,))

    assert done.exit_code == 0
    assert "without the operator's lines: your user may not read logs in the namespace ops\n" in done.stderr
    assert "planned" not in done.stdout


def test_who_may_not_read_the_runs_logs_is_told(followed: Followed) -> None:
    followed.trainer("north")
    followed.trouble["north"] = UserError("ApiForbidden", "ask an admin")

    done = followed.follow()

    assert (done.exit_code, done.stderr) == (1, "ApiForbidden: ask an admin\n")


def test_a_lost_request_is_told_once_and_costs_no_line(followed: Followed) -> None:
    def lose_one_log() -> None:
        followed.trouble["south"] = TransientError("ApiUnavailable", "no route to host")
        for site in ("north", "south"):
            followed.write(site, "trains")

    def lose_the_run() -> None:
        followed.world.api.trouble["get federatedfinetunes"] = TransientError("ApiUnavailable", "no route to host")

    def answer_again() -> None:
        del followed.world.api.trouble["get federatedfinetunes"]
        followed.world.settle()

    for site in ("north", "south"):
        followed.trainer(site)

    done = followed.follow(steps=(lose_one_log, lose_the_run, answer_again))

    assert done.exit_code == 0
    assert sorted(done.stdout.splitlines()) == ["[train r1 north a0] trains", "[train r1 south a0] trains"]
    assert done.stderr == "ApiUnavailable: no route to host\n"


def test_a_container_that_has_just_been_replaced_is_no_error(followed: Followed) -> None:
    followed.trainer("north")
    followed.write("north", "works")
    followed.trouble["north"] = UserError("ApiRefused", "previous terminated container not found")

    assert followed.follow().stdout == "[train r1 north a0] works\n"


def test_an_interruption_ends_it_quietly(followed: Followed) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    followed.trainer("north")
    followed.write("north", "works")
    done = followed.follow(steps=(interrupt,))

    assert (done.exit_code, done.output) == (130, "[train r1 north a0] works\n")


def test_a_run_that_has_ended_is_not_waited_for(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    followed.world.settle()
    monkeypatch.delattr(logs, "sleep")

    assert followed.follow().exit_code == 0


def test_another_run_of_the_same_name_is_not_taken_for_this_one(followed: Followed) -> None:
    def create_it_again() -> None:
        run = followed.world.body()
        followed.world.api.objects[RUNS.plural, "default", "toy"] = run | {"metadata": run["metadata"] | {"uid": "uid-2"}}

    done = followed.follow(steps=(create_it_again,))

    assert done.exit_code == 1
    assert "RunMissing: the FederatedFineTune default/toy was deleted, and another of its name created" in done.stderr


def test_nothing_that_a_trainer_writes_passes_for_the_operators_or_steers_the_terminal(followed: Followed) -> None:
    labels = {"fedpipe.io/run-uid": "uid-1", "app.kubernetes.io/component": "operator", "helm.sh/chart": "fedpipe-0.1.0"}
    followed.pod("evil", labels)
    followed.write("evil", json.dumps({"message": "\x1b[2Jcomplete", "uid": "uid-1"}))

    (line,) = followed.follow("--operator-namespace", "ops").stdout.splitlines()

    assert line == "[a0] \N{REPLACEMENT CHARACTER}[2Jcomplete"

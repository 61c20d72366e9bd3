"""`fedpipe` against a cluster, from this machine, by the kubeconfig: also as kubectl's plugin."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fleet_namespace import SHORT, FleetNamespace, store_from_here

pytestmark = pytest.mark.e2e

BIN = Path(sys.executable).parent


def fedpipe(*arguments: str, plugin: bool = False) -> str:
    """The output of a command that succeeds."""
    environ = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"}
    program = ["kubectl", "fedpipe"] if plugin else ["fedpipe"]
    done = subprocess.run([*program, *arguments], env=environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_logs_of_a_run_are_followed_until_it_ends_or_somebody_has_seen_enough(namespace: FleetNamespace) -> None:
    command = ("logs", "toy", "-n", namespace.name, "--follow")
    namespace.start("north", "south", **SHORT)

    with subprocess.Popen([BIN / "fedpipe", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as impatient:
        assert impatient.stdout
        assert impatient.stdout.readline().startswith("[")
        impatient.send_signal(signal.SIGINT)
        _, said = impatient.communicate(timeout=30)
    followed = fedpipe(*command)

    assert impatient.returncode == 130
    assert not re.search("Traceback|Aborted|stopped", said), said
    sources = set(re.findall(r"^\[(.*?)\] ", followed, re.MULTILINE))
    assert {"profile north a0", "train r1 north a0", "train r1 south a0", f"operator {namespace.operator.kubectl.namespace}"} <= sources
    assert len(re.findall(r"^\[operator \S+\] \S+ INFO +complete: ", followed, re.MULTILINE)) == 1


def test_a_run_on_a_cluster_is_followed_and_explained_from_a_desk(namespace: FleetNamespace, tmp_path: Path) -> None:
    where = ("toy", "-n", namespace.name)
    namespace.start("north", "south", **SHORT)

    followed = fedpipe("status", *where, "--watch", plugin=True)
    assert re.search(r"^\S+/toy: Training, round 1 of 1, ", followed, re.MULTILINE)
    assert re.search(r"^\S+/toy: RoundsCompleted", followed, re.MULTILINE)
    assert "north          plan: " in followed
    assert "round 1: 2/2 updates" in followed

    store = ("--endpoint", store_from_here())  # the spec's is a name of the cluster
    plan = fedpipe("plan", *where, *store)
    assert {"north", "south"} <= set(re.findall(r"^\w+", plan, re.MULTILINE))
    assert "limit: what keeps the site from doing more" in plan

    logs = fedpipe("logs", *where, "--site", "north", "--round", "1")
    assert set(re.findall(r"^\[train r1 (\w+) a0\] ", logs, re.MULTILINE)) == {"north"}

    events = fedpipe("events", *where)
    assert "FederatedFineTune/toy: " in events
    assert "Job/toy-train-r1-north-a0" in events

    report = fedpipe("report", *where, *store, "--output", str(tmp_path)).strip()
    assert report == f"{tmp_path}/{namespace.name}/toy/report.html"
    assert "south" in Path(report).read_text()

"""The report of a run on the cluster, served by the operator: through a forwarded port, by `fedpipe` and in a real browser.

The run leaves its store to the operator's default one, so what reads it takes the place from its status.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from browser import opened_browser
from cluster_user import Kubectl, wait_until
from fleet_namespace import SECRET, FleetNamespace, store_endpoint, store_from_here
from report_servers import AUDIENCE, ask, bearer

pytestmark = pytest.mark.e2e

BIN: Final = Path(sys.executable).parent


@contextmanager
def forwarded(kubectl: Kubectl, what: str) -> Iterator[int]:
    """A port of this machine that leads to the reports of this pod or Service."""
    command = ["kubectl", f"--namespace={kubectl.namespace}", "port-forward", what, ":8443"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        assert forward.stdout
        found = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
        assert found, "kubectl port-forward ended"
        try:
            yield int(found[1])
        finally:
            forward.terminate()


def fedpipe(*arguments: str, token: str = "") -> str:
    """The output of a command that succeeds."""
    environ = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200", "FEDPIPE_TOKEN": token}
    done = subprocess.run(["fedpipe", *arguments], env=environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_a_report_is_read_in_a_browser_by_whoever_may_get_the_run_and_by_nobody_else(namespace: FleetNamespace, tmp_path: Path) -> None:
    where = {"bucket": "fedpipe", "prefix": f"runs/{namespace.name}", "endpoint": store_endpoint()}
    store = {**where, "credentialsSecretRef": {"name": SECRET}}
    values = {"defaultStore": store, "reports.enabled": True, "replicas": 2, "resources.requests.memory": "128Mi"}
    with namespace.served_by_its_own_operator(values) as served:
        run = served.run(rounds={"count": 1}, export={"adapter": False, "merged": False})
        del run["spec"]["store"]
        served.kubectl.apply(served.site("north"), served.site("south"), run)
        finished = served.wait_until_complete()
        reads_its_results_where_the_status_says(served, finished["status"]["store"], tmp_path)
        reads_what_the_operator_serves(served, tmp_path)
        opens_it_in_a_browser(served, tmp_path)


def reads_its_results_where_the_status_says(namespace: FleetNamespace, at: dict[str, str], folder: Path) -> None:
    assert at["prefix"].startswith(f"runs/{namespace.name}/{namespace.name}/toy/")

    report = fedpipe("report", "toy", "-n", namespace.name, "--endpoint", store_from_here(), "--output", str(folder / "by-store"))
    plan = fedpipe("plan", "toy", "-n", namespace.name, "--endpoint", store_from_here())

    assert "north" in Path(report).read_text()
    assert {"north", "south"} <= set(re.findall(r"^\w+", plan, re.MULTILINE))


def reads_what_the_operator_serves(namespace: FleetNamespace, folder: Path) -> None:
    kubectl, operator = namespace.kubectl, namespace.operator
    for account in ("reader", "stranger"):
        kubectl("create", "serviceaccount", account)
    kubectl("create", "rolebinding", "reader", "--clusterrole", "view", "--serviceaccount", f"{namespace.name}:reader")
    tokens = {account: a_token(kubectl, account) for account in ("reader", "stranger")}
    path = f"/{namespace.name}/toy"

    with forwarded(operator.kubectl, "service/fedpipe-reports") as port:
        wait_until(partial(is_served, port, path, tokens["reader"]), "the report is drawn", seconds=90)
        options = ("--server", f"http://localhost:{port}", "--output", str(folder))
        served = fedpipe("report", "toy", "-n", namespace.name, *options, token=tokens["reader"])
        refused = {
            "no token": ask(port, path)[0],
            "of the API server": ask(port, path, headers=bearer(kubectl("create", "token", "reader").strip()))[0],
            "stranger": ask(port, path, headers=bearer(tokens["stranger"]))[0],
            "stranger, no run": ask(port, f"/{namespace.name}/none", headers=bearer(tokens["stranger"]))[0],
            "reader, no run": ask(port, f"/{namespace.name}/none", headers=bearer(tokens["reader"]))[0],
            "reader, elsewhere": ask(port, "/default/toy", headers=bearer(tokens["reader"]))[0],
        }

    assert "south" in Path(served).read_text()
    assert refused == {
        "no token": 401,
        "of the API server": 401,
        "stranger": 403,
        "stranger, no run": 403,
        "reader, no run": 404,
        "reader, elsewhere": 403,
    }
    for pod in operator.pods():  # the one that leads, and the one that stands by
        with forwarded(operator.kubectl, f"pod/{pod['metadata']['name']}") as port:
            wait_until(partial(is_served, port, path, tokens["reader"]), "each replica serves it", seconds=90)


def is_served(port: int, path: str, token: str) -> bool:
    """Whether it is; a drawing takes longer than a request waits, where others use the processors."""
    return ask(port, path, headers=bearer(token))[0] == 200


def opens_it_in_a_browser(namespace: FleetNamespace, folder: Path) -> None:
    token = a_token(namespace.kubectl, "reader")
    with forwarded(namespace.operator.kubectl, "service/fedpipe-reports") as port, opened_browser(folder / "browser") as browser:
        browser.resize(1280, 900)
        browser.open(f"http://localhost:{port}/{namespace.name}/toy")
        browser.write("#token", token)
        browser.submit("button")
        rounds, plans = browser.texts("#rounds tr td:first-child"), browser.texts("#why h3")
        complaints = [one for one in browser.complaints() if "status of 401" not in one and "/favicon.ico" not in one]
        if pictures := os.environ.get("FEDPIPE_PICTURES"):
            browser.picture(Path(pictures) / "served-by-the-cluster.png")

    assert rounds == ["1"]
    assert plans == ["The plan of north, and why", "The plan of south, and why"]
    assert complaints == []


def a_token(kubectl: Kubectl, account: str) -> str:
    """A token of this service account for reports."""
    return kubectl("create", "token", account, "--audience", AUDIENCE, "--duration", "1h").strip()

"""Which store the commands read for a run on a cluster, and with whose key pair."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_cluster import SETTINGS, KubeWorld
from stand_in_runs import a_run
from typer.testing import CliRunner, Result

from fedpipe_operator.api import StoreSpec
from fedpipe_operator.cli import app_for, cluster_run
from fedpipe_operator.cluster.api import RUNS, SECRETS, KubeContext
from fedpipe_operator.errors import UserError
from fedpipe_operator.store import DirectoryStore

DEFAULT = StoreSpec.model_validate({"bucket": "ours", "endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "store"}})
FORBIDDEN = UserError("ApiForbidden", "get secrets default/store: secrets is forbidden")


class Caller:
    """A caller with a kubeconfig, and a run that names no store, on a cluster whose operator has a default one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = KubeWorld(folder, a_run(store=None))
        self.opened: list[Any] = []
        monkeypatch.setattr(cluster_run, "of_kubeconfig", lambda _context: KubeContext(self.world.api, "default"))  # type: ignore[arg-type]
        monkeypatch.setattr(cluster_run, "open_store", self._open)
        self.world.api.apply(SECRETS, "default", _secret("store", "its key"))

    def plan(self) -> None:
        """Have the operator plan the first round."""
        self.world.settings = replace(SETTINGS, default_store=DEFAULT)
        self.world.restart()
        self.world.work_until("train-r1")

    def fedpipe(self, *arguments: str) -> Result:
        return CliRunner().invoke(app_for(arguments), [*arguments, "-n", "default"])

    def _open(self, address: Any, credentials: Any) -> DirectoryStore:
        self.opened.append((address.url, address.endpoint, credentials.access_key))
        return DirectoryStore(self.world.folder / "stores" / "uid-1")


def _secret(name: str, key: str) -> dict[str, Any]:
    text = base64.b64encode(key.encode()).decode()
    return {"metadata": {"name": name}, "data": {"AWS_ACCESS_KEY_ID": text, "AWS_SECRET_ACCESS_KEY": text}}


@pytest.fixture
def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caller:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    return Caller(tmp_path, monkeypatch)


@pytest.mark.parametrize("command", [("plan", "toy"), ("report", "toy")], ids=["plan", "report"])
def test_a_run_on_the_operator_s_default_store_is_read_where_its_status_says(
    caller: Caller, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    caller.plan()

    done = caller.fedpipe(*command)

    assert done.exit_code == 0, done.output
    assert caller.opened == [("s3://ours/fedpipe/default/toy/uid-1", "http://minio:9000", "its key")]


def test_another_endpoint_may_lead_to_the_same_store(caller: Caller) -> None:
    caller.plan()

    assert caller.fedpipe("plan", "toy", "--endpoint", "http://localhost:9000").exit_code == 0
    assert caller.opened[0][1] == "http://localhost:9000"


def test_who_may_not_read_the_secret_is_told_everything_that_would_do(caller: Caller) -> None:
    caller.plan()
    caller.world.api.trouble["get secrets"] = FORBIDDEN

    done = caller.fedpipe("plan", "toy")

    assert done.exit_code == 1
    assert done.stderr.startswith(
        "StoreForbidden: your user may not read the Secret default/store, whose key pair opens s3://ours/fedpipe/"
    )
    for way in ("the right to get it", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "docs/report.md"):
        assert way in done.stderr


def test_who_may_not_read_the_secret_may_bring_a_key_pair(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    caller.plan()
    caller.world.api.trouble["get secrets"] = FORBIDDEN
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "my key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")

    assert caller.fedpipe("plan", "toy").exit_code == 0
    assert [key for *_, key in caller.opened] == ["my key"]


def test_a_store_that_the_operator_opens_by_its_role_takes_the_caller_s_key_pair(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    caller.plan()
    status = caller.world.api.get(RUNS, "default", "toy")["status"]
    del status["store"]["credentialsSecretRef"]
    caller.world.api.replace_status(RUNS, "default", "toy", status)

    without = caller.fedpipe("plan", "toy")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "my key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")

    assert without.stderr.startswith("StoreForbidden: the operator opens s3://ours/fedpipe/default/toy/uid-1 by a role of its own")
    assert caller.fedpipe("plan", "toy").exit_code == 0
    assert [key for *_, key in caller.opened] == ["my key"]


def test_the_key_pair_of_the_environment_is_not_used_where_the_run_s_own_can_be_read(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller.plan()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "my key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")

    caller.fedpipe("plan", "toy")

    assert [key for *_, key in caller.opened] == ["its key"]


def test_a_run_that_no_operator_has_taken_up_has_no_store_yet(caller: Caller, tmp_path: Path) -> None:
    done = caller.fedpipe("report", "toy", "--output", str(tmp_path))

    assert done.exit_code == 1
    assert done.stderr.startswith("StoreMissing: default/toy names no store in its spec, and its status.store is empty")

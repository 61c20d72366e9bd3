"""A real cluster: the chart is installed once, each test has a namespace of its own, and the files run in parallel.

With pytest-xdist, each file's tests run in one worker. A lock on the cluster is held for each file: a shared one, unless the file is
marked `exclusive`, because it disturbs what the others share (the operator, the API server, the nodes, the store), or `independent`,
because it does not use the cluster. Exclusive files run last, one after another. A test may also acquire the exclusive lock itself,
once it disturbs the others.
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import local_runs
import pytest
from charts import helm
from cluster_user import FFT, Kubectl
from fleet_namespace import FleetNamespace, OpenNamespace
from installed_operator import RELEASE, Operator, is_test_cluster, namespace_manifest
from worker_session import Lock, WorkerSession

NEEDED = ("KUBECONFIG", "FEDPIPE_OPERATOR_IMAGE", "FEDPIPE_TRAINER_IMAGE", "FEDPIPE_STORE_ENDPOINT")
FIRST: Final = (
    "test_quickstart",
    "test_served_report",
    "test_auto_plans",
    "test_store_identity",
    "test_suspension",
    "test_deletion",
    "test_out_of_memory",
    "test_faults",
    "test_full_store",
    "test_trainer_pods",
    "test_sidecars",
    "test_shared_sites",
)
"""Files that take minutes. If one of them started late, all other workers would wait for it."""
LAST: Final = ("test_readme", "test_chaos", "test_operator_benchmark")
"""Files that begin with a part that disturbs nothing and then wait for the exclusive lock, and one that runs while they wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the end-to-end tests; a stable sort keeps the order within a file."""
    items.sort(key=_position)


def _position(item: pytest.Item) -> int:
    order = (*FIRST, "others", *LAST, "exclusive")
    if not item.get_closest_marker("e2e"):
        return 0
    if item.path.stem in order:
        return order.index(item.path.stem)
    return order.index("exclusive" if item.get_closest_marker("exclusive") else "others")


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> WorkerSession:
    """What the workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return WorkerSession(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="module", autouse=True)
def cluster_lock(session: WorkerSession, request: pytest.FixtureRequest) -> Iterator[Lock]:
    """A lock on the cluster while this file runs."""
    with session.lock("cluster") as lock:
        if request.node.get_closest_marker("exclusive"):
            lock.acquire_exclusive()
        elif not request.node.get_closest_marker("independent"):
            lock.acquire_shared()
        yield lock


@pytest.fixture(scope="session")
def cluster() -> None:
    """A cluster that the environment names."""
    missing = [name for name in NEEDED if not os.environ.get(name)]
    assert not missing, f"{', '.join(missing)} not set: `make e2e` sets all of it (docs/development/cluster.md)"


@pytest.fixture(scope="session")
def disposable_cluster(cluster: None) -> None:
    """A cluster that the tests may disturb, and whose nodes share this machine's folders."""
    del cluster
    if not is_test_cluster():
        pytest.skip("needs a cluster of tests/cluster: it uses volumes in this machine's folders, or causes outages")


@pytest.fixture(scope="session")
def operator(cluster: None, session: WorkerSession) -> Iterator[Operator]:
    """The chart, installed by Helm with the images under test; uninstalled at the end unless it was installed before."""
    del cluster
    operator = Operator(Kubectl("fedpipe"))

    def install() -> str:
        releases = helm("list", "-n", operator.kubectl.namespace, "-q").stdout.split()
        operator.kubectl.apply(namespace_manifest(operator.kubectl.namespace))
        operator.upgrade()
        return "upgraded" if RELEASE in releases else "installed"

    def uninstall(was: str) -> None:
        if was == "installed":
            operator.uninstall()

    with session.using("operator", install, uninstall):
        yield operator


@pytest.fixture(scope="session")
def fleet(session: WorkerSession) -> Path:
    """A toy model and three sites' rows, in a folder that the nodes can read."""
    return _fleet(session, "a_fleet")


@pytest.fixture(scope="session")
def uneven_fleet(session: WorkerSession) -> Path:
    """The same with sites of different sizes and a model that needs much memory, see `local_runs.an_uneven_fleet`."""
    return _fleet(session, "an_uneven_fleet")


def _fleet(session: WorkerSession, maker: str) -> Path:
    """The folder of the fleet that this function of `local_runs` makes."""
    folder = session.folder / maker

    def create() -> str:
        getattr(local_runs, maker)(folder)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return str(folder)

    return Path(session.once(maker, create))


@pytest.fixture(scope="session")
def open_namespace(disposable_cluster: None, operator: Operator, fleet: Path) -> OpenNamespace:
    """Opens a namespace with a fleet and closes it at the end."""
    del disposable_cluster

    def opened(name: str) -> AbstractContextManager[FleetNamespace]:
        return FleetNamespace(Kubectl(name), operator, fleet).opened()

    return opened


@pytest.fixture
def namespace(open_namespace: OpenNamespace, request: pytest.FixtureRequest) -> Iterator[FleetNamespace]:
    """A namespace with a fleet for this test, named after it."""
    with open_namespace(_name_of(request.node.originalname)) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def empty_namespace(operator: Operator, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """An empty namespace for this file, named after it."""
    del operator
    kubectl = Kubectl(_name_of(request.path.stem))
    kubectl.apply(namespace_manifest(kubectl.namespace))
    yield kubectl
    kubectl("delete", FFT, "--all", "--timeout=90s")
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


def _name_of(test: str) -> str:
    return "e2e-" + re.sub("[^a-z0-9]+", "-", test.lower().removeprefix("test_"))[:40].strip("-")

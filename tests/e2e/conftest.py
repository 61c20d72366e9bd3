"""A real cluster: the chart installed once, and a namespace for each test."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from charts import helm
from cluster_user import FFT, Kubectl
from installed_operator import RELEASE, Operator, cluster_is_ours, namespace
from local_runs import a_fleet
from wards import Ward, WardCalled

NEEDED = ("KUBECONFIG", "FEDPIPE_OPERATOR_IMAGE", "FEDPIPE_TRAINER_IMAGE", "FEDPIPE_STORE_ENDPOINT")


@pytest.fixture(scope="session")
def cluster() -> None:
    """A cluster that the environment names."""
    missing = [name for name in NEEDED if not os.environ.get(name)]
    assert not missing, f"{', '.join(missing)} not set: `make e2e` sets all of it (docs/development/cluster.md)"


@pytest.fixture(scope="session")
def ours(cluster: None) -> None:
    """A cluster that the tests may break, and whose nodes have this machine's folders."""
    del cluster
    if not cluster_is_ours():
        pytest.skip("this asks for a cluster of tests/cluster: volumes in this machine's folders, and outages on purpose")


@pytest.fixture(scope="session")
def operator(cluster: None) -> Iterator[Operator]:
    """The chart, installed by Helm with the images under test; what was installed before stays in the end."""
    del cluster
    operator = Operator(Kubectl("fedpipe"))
    was_there = RELEASE in helm("list", "-n", operator.kubectl.namespace, "-q").stdout.split()
    operator.kubectl.apply(namespace(operator.kubectl.namespace))
    operator.upgrade()
    yield operator
    if not was_there:
        operator.uninstall()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model and three sites' rows, where the nodes can read them."""
    folder = tmp_path_factory.mktemp("fleet")
    a_fleet(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="session")
def ward_called(ours: None, operator: Operator, fleet: Path) -> WardCalled:
    """Opens a namespace and closes it again."""
    del ours

    @contextmanager
    def opened(name: str) -> Iterator[Ward]:
        ward = Ward(Kubectl(name), operator, fleet)
        ward.open()
        try:
            yield ward
        finally:
            ward.close()

    return opened


@pytest.fixture
def ward(ward_called: WardCalled, request: pytest.FixtureRequest) -> Iterator[Ward]:
    """A namespace of this test's own, named after it."""
    with ward_called(_name_of(request.node.name)) as ward:
        yield ward


@pytest.fixture(scope="module")
def quarters(operator: Operator, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """A namespace of this file's own with nothing in it."""
    del operator
    kubectl = Kubectl(_name_of(request.path.stem))
    kubectl.apply(namespace(kubectl.namespace))
    yield kubectl
    kubectl("delete", FFT, "--all", "--timeout=90s")
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


@pytest.fixture(scope="session")
def undisturbed(ward_called: WardCalled) -> Iterator[Ward]:
    """A namespace in which the run `toy` of two sites and two rounds is complete."""
    with ward_called("e2e-undisturbed") as ward:
        ward.start("north", "south")
        ward.wait_until_complete()
        yield ward


def _name_of(test: str) -> str:
    return "e2e-" + re.sub("[^a-z0-9]+", "-", test.lower().removeprefix("test_"))[:40].strip("-")

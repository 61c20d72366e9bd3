"""The README's commands that build and install the operator, with the cluster's registry for REGISTRY, to serve the test's namespace."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crds import ROOT
from fleet_namespace import SHORT, FleetNamespace
from installed_operator import Operator
from readmes import blocks, follow
from testcluster import nodes
from testcluster.layout import REGISTRY, default_layout
from worker_session import Lock

pytestmark = pytest.mark.e2e

DOCKER = f"""#!{sys.executable}
# buildah in place of docker, with this machine's base image: `docker build -f Dockerfile.X -t IMAGE .` and `docker push IMAGE`.
import sys
sys.path.insert(0, {str(ROOT / "tests" / "cluster")!r})
from testcluster import buildah, images, layout
if sys.argv[1:3] == ["build", "-f"] and sys.argv[4] == "-t":
    images.build(layout.default_layout(), sys.argv[3].removeprefix("Dockerfile."), sys.argv[5])
elif sys.argv[1] == "push":
    buildah.push(layout.default_layout(), sys.argv[2])
else:
    sys.exit(f"unknown command: {{sys.argv}}")
"""


def commands() -> str:
    """The README's commands up to a running operator."""
    (section,) = re.findall(r"^## On Kubernetes\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return blocks(section)[0].replace("REGISTRY", REGISTRY)


@pytest.fixture
def installed(namespace: FleetNamespace, operator: Operator, cluster_lock: Lock, tmp_path: Path) -> Iterator[Operator]:
    """The operator, installed by the README's commands; afterwards the release of the other tests is installed again."""
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    build, helm, install = commands().partition("helm install ")
    follow(build, folder=ROOT, first_in_path=tmp_path)
    for part in ("operator", "trainer"):
        nodes.remove_image(default_layout(), f"{REGISTRY}/fedpipe-{part}:0.1.0")  # a node may have one of an earlier session
    cluster_lock.acquire_exclusive()
    operator.uninstall()
    try:
        follow(f"{helm}{install.rstrip()} --set 'namespaces={{{namespace.name}}}'", folder=ROOT, first_in_path=tmp_path)
        yield operator
    finally:
        operator.upgrade()


def test_the_operator_installed_by_the_readme_completes_a_run_with_the_images_it_built(
    installed: Operator, namespace: FleetNamespace
) -> None:
    namespace.start("north", **SHORT)

    namespace.wait_until_complete()

    images = {one["image"] for pod in namespace.kubectl.list("pods") for one in pod["spec"]["containers"]}
    assert images == {f"{REGISTRY}/fedpipe-trainer:0.1.0"}
    assert [pod["spec"]["containers"][0]["image"] for pod in installed.pods()] == [f"{REGISTRY}/fedpipe-operator:0.1.0"]

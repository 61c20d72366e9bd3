"""The README's way to an operator at work: its commands as they stand there, with the cluster's registry for REGISTRY."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from crds import ROOT
from installed_operator import Operator
from readmes import blocks, follow
from testcluster.layout import REGISTRY
from wards import SHORT, Ward

pytestmark = pytest.mark.e2e

DOCKER = f"""#!{sys.executable}
# In docker's place buildah, with this machine's base image: `docker build -f Dockerfile.X -t IMAGE .` and `docker push IMAGE`.
import sys
sys.path.insert(0, {str(ROOT / "tests" / "cluster")!r})
from testcluster import buildah, images, layout
if sys.argv[1:3] == ["build", "-f"] and sys.argv[4] == "-t":
    images.build(layout.default_layout(), sys.argv[3].removeprefix("Dockerfile."), sys.argv[5])
elif sys.argv[1] == "push":
    buildah.push(layout.default_layout(), sys.argv[2])
else:
    sys.exit(f"no such command here: {{sys.argv}}")
"""


def commands() -> str:
    """What the README says of Kubernetes up to an operator at work."""
    (section,) = re.findall(r"^## On Kubernetes\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return blocks(section)[0].replace("REGISTRY", REGISTRY)


@pytest.fixture
def installed(ours: None, operator: Operator, tmp_path: Path) -> Iterator[Operator]:
    """The operator, installed as the README says; in the end it is again what the other tests have."""
    del ours
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    operator.uninstall()
    try:
        follow(commands(), folder=ROOT, first_in_path=tmp_path)
        yield operator
    finally:
        operator.upgrade()


def test_what_the_readme_installs_runs_a_run_with_the_images_that_it_has_built(installed: Operator, ward: Ward) -> None:
    ward.start("north", **SHORT)

    ward.wait_until_complete()

    images = {one["image"] for pod in ward.kubectl.list("pods") for one in pod["spec"]["containers"]}
    assert images == {f"{REGISTRY}/fedpipe-trainer:0.1.0"}
    assert [pod["spec"]["containers"][0]["image"] for pod in installed.pods()] == [f"{REGISTRY}/fedpipe-operator:0.1.0"]

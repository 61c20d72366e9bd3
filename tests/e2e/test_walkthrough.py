"""docs/first-run.md, from installation to removal: its commands as printed, with a run of the toy fleet in the example's place."""

import os
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest
import yaml
from charts import helm
from cluster_user import FFT, Plain, condition
from crds import ROOT
from fleet_namespace import FleetNamespace, OpenNamespace
from installed_operator import RELEASE, Operator
from job_history import duplicate_jobs
from prometheus import prometheus_of_the_operator
from readmes import blocks, follow

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.exclusive]

RUN: Final = "quickstart"
ROUNDS: Final = 4
"""As many as the example's; each takes some seconds here."""
BIN: Final = Path(sys.executable).parent


def commands() -> list[str]:
    """The blocks of the section."""
    text = (ROOT / "docs" / "first-run.md").read_text()
    (section,) = re.findall(r"^## On a cluster, from installation to removal\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    return blocks(section)


@pytest.fixture
def removed(operator: Operator) -> Iterator[Operator]:
    """No release; that of the other tests comes back at the end."""
    operator.uninstall()
    try:
        yield operator
    finally:
        if RELEASE in helm("list", "-n", operator.kubectl.namespace, "-q").stdout.split():
            operator.uninstall()
        operator.kubectl("delete", "pod", f"{RELEASE}-test", "--ignore-not-found")
        operator.upgrade()


@pytest.fixture
def namespace(open_namespace: OpenNamespace) -> Iterator[FleetNamespace]:
    """A namespace whose name fits into a panel."""
    with open_namespace("e2e-walk") as found:
        yield found


def as_here(block: str, namespace: FleetNamespace, folder: Path, prometheus_url: str) -> str:
    """The commands with this cluster's images, the test's namespace for the run, and its files and addresses."""
    for part in ("operator", "trainer"):
        repository, _, tag = os.environ[f"FEDPIPE_{part.upper()}_IMAGE"].rpartition(":")
        block = block.replace(
            f"{part}Image.repository=REGISTRY/fedpipe-{part}", f"{part}Image.repository={repository},{part}Image.tag={tag}"
        )
    block = re.sub(r"^(kubectl .*)-n fedpipe", rf"\1-n {namespace.name}", block, flags=re.MULTILINE)
    block = re.sub(r"^(helm install (?:.*\\\n)*.*)$", rf"\1 --set 'namespaces={{{namespace.name}}},scratch=1Gi'", block, flags=re.MULTILINE)
    block = block.replace("examples/kubernetes/", str(folder / "objects.yaml"))
    return block.replace("http://localhost:9090 fedpipe", f"{prometheus_url} {namespace.name}").replace(
        "pictures/", str(folder / "pictures")
    )


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def started(pod: Plain) -> datetime:
    return when(pod["metadata"]["creationTimestamp"])


def test_every_command_from_installation_to_removal_works_as_printed(removed: Operator, namespace: FleetNamespace, tmp_path: Path) -> None:
    install, run, draw, remove = commands()
    objects = [namespace.site("north"), namespace.site("south"), namespace.run(RUN, rounds={"count": ROUNDS})]
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(objects))
    (tmp_path / "prometheus").mkdir()

    with prometheus_of_the_operator(tmp_path / "prometheus", removed.kubectl) as url:

        def follow_here(block: str) -> None:
            follow(as_here(block, namespace, tmp_path, url), folder=ROOT, first_in_path=BIN)

        follow_here(install)
        (first,) = removed.pods()
        follow_here(run)
        pods, finished = removed.pods(), namespace.get_run(RUN)
        follow_here(draw)
        follow_here(remove)

    # The upgrade was during the run: both new pods were made after its start and before its end, and no Job was made twice.
    ended = when(condition(finished, "Complete")["lastTransitionTime"])
    assert len(pods) == 2
    assert first["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in pods}
    assert all(when(finished["metadata"]["creationTimestamp"]) <= started(pod) < ended for pod in pods)
    assert finished["status"]["round"] == ROUNDS
    assert duplicate_jobs(namespace.kubectl) == []

    pictures = {path.stem: path.read_text() for path in (tmp_path / "pictures").iterdir()}
    assert pictures.keys() == {"fedpipe-fleet", "fedpipe-run", "fedpipe-operator"}
    assert f">{namespace.name}/{RUN}<" in pictures["fedpipe-fleet"]
    assert all(f">{site}" in pictures["fedpipe-run"] for site in ("north", "south"))

    assert helm("list", "-n", removed.kubectl.namespace, "-q").stdout.split() == []
    assert namespace.kubectl.list(FFT) == []
    assert {site["metadata"]["name"] for site in namespace.kubectl.list("edgesites")} == {"north", "south"}

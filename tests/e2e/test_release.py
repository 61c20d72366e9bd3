"""`make release` into the cluster's registry, from a clone: what is in the registry afterwards is what its files say, and it can be run."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from charts import API_SERVER, helm, of_kind, set_values
from cluster_user import Kubectl
from crds import ROOT
from testcluster.base_image import BASE, build_base
from testcluster.buildah import buildah
from testcluster.layout import REGISTRY, default_layout
from testcluster.shell import locked

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.usefixtures("disposable_cluster")]

VERSION: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAMESPACE: Final = "e2e-release"
HOME: Final = f"{REGISTRY}/{NAMESPACE}"
IMAGES: Final = [f"{HOME}/fedpipe-{part}:{VERSION}" for part in ("operator", "trainer")]
CHART: Final = f"oci://{HOME}/charts/fedpipe"
AUTHOR: Final = ("-c", "user.name=Release", "-c", "user.email=release@example.org")

BUILDAH: Final = f"""#!{sys.executable}
# buildah as the test cluster uses it: with its store, so that layers are built once, with this machine's package index, without TLS.
import sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests" / "cluster")!r})
from testcluster import builder_settings, buildah, layout
command, *rest = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    secrets = [f"--secret=id={{name}},src={{file}}" for name, file in builder_settings.secrets(Path(folder)).items()]
    build = ["--isolation", "chroot", "--format", "oci", "--layers", "--quiet", "--pull-never", "--ignorefile", ".dockerignore", *secrets]
    push = ["--quiet", "--tls-verify=false", "--compression-format", "zstd", "--compression-level", "3"]
    print(buildah.buildah(layout.default_layout(), command, *(build if command == "build" else push), *rest))
"""


@dataclass(frozen=True)
class Release:
    """The folder that `make release` wrote."""

    folder: Path

    @cached_property
    def images(self) -> dict[str, str]:
        """The digest of each pushed image by its tag."""
        lines = (self.folder / "images.txt").read_text().splitlines()
        return {tag: digest for tag, _, digest in (line.partition("@") for line in lines)}

    @property
    def references(self) -> set[str]:
        """The images by digest."""
        return {f"{tag.rpartition(':')[0]}@{digest}" for tag, digest in self.images.items()}


@pytest.fixture(scope="module")
def release(disposable_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A release of the last commit, with its version in the changelog."""
    del disposable_cluster
    above = tmp_path_factory.mktemp("release")
    tool, clone = above / "buildah", clone_with_a_heading(above / "clone")
    tool.write_text(BUILDAH)
    tool.chmod(0o755)
    with locked(default_layout().cache / "images.lock"):
        done = make_release(clone, f"CONTAINER_TOOL={tool}", f"OPERATOR_BASE={base()}", f"TRAINER_BASE={base()}")
    assert done.returncode == 0, done.stdout + done.stderr
    yield Release(clone / "dist")
    buildah(default_layout(), "rmi", *IMAGES)
    shutil.rmtree(default_layout().registry / "docker/registry/v2/repositories" / NAMESPACE)


def clone_with_a_heading(clone: Path) -> Path:
    """A clone of the repository whose changelog has the version, in a commit; nothing is installed into it."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    changelog = clone / "CHANGELOG.md"
    text = changelog.read_text()
    if f"[{VERSION}]" not in text:
        changelog.write_text(text.replace("## [Unreleased]\n", f"## [Unreleased]\n\n## [{VERSION}] - 2026-11-29\n"))
        subprocess.run(["git", "-C", str(clone), *AUTHOR, "commit", "--quiet", "-am", f"Release {VERSION}"], check=True)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    return clone


def make_release(clone: Path, *variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `make release`. `INSTALLED` names a file that is there, so that make installs nothing."""
    given = (f"VERSION={VERSION}", f"REGISTRY={HOME}", "HELM_PUSH_ARGS=--plain-http", "INSTALLED=LICENSE", f"PYTHON={sys.executable}")
    return subprocess.run(["make", "release", *given, *variables], cwd=clone, capture_output=True, text=True, check=False)


def base() -> str:
    """The base image of the cluster's images, by digest."""
    build_base(default_layout())
    name = BASE.rpartition(":")[0]
    (digest,) = {image["digest"] for image in json.loads(buildah(default_layout(), "images", "--json", BASE)) if BASE in image["names"]}
    return f"{name}@{digest}"


@pytest.fixture(scope="module")
def pulled(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as the registry has it."""
    del release
    folder = tmp_path_factory.mktemp("pulled")
    done = helm("pull", CHART, "--version", VERSION, "--plain-http", "--destination", folder)
    assert done.returncode == 0, done.stderr
    return folder / f"fedpipe-{VERSION}.tgz"


def test_the_checksums_are_those_of_the_files_and_of_the_chart_in_the_registry(release: Release, pulled: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=release.folder, capture_output=True, text=True, check=True)

    names = [f"fedpipe-{VERSION}.tgz", "fedpipe-operator.cdx.json", "fedpipe-trainer.cdx.json", "images.txt"]
    assert done.stdout.splitlines() == [f"{name}: OK" for name in names]
    assert pulled.read_bytes() == (release.folder / pulled.name).read_bytes()


def test_the_pulled_chart_the_bills_of_materials_and_the_images_have_the_version(release: Release, pulled: Path) -> None:
    chart = yaml.safe_load(helm("show", "chart", pulled).stdout)
    bills = [json.loads(file.read_text()) for file in release.folder.glob("*.cdx.json")]

    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    assert [bill["metadata"]["component"]["version"] for bill in bills] == [VERSION, VERSION]
    assert list(release.images) == IMAGES


def test_the_registry_has_each_image_by_the_digest_that_was_noted(release: Release) -> None:
    for image, digest in release.images.items():
        name = image.removeprefix(f"{REGISTRY}/").rpartition(":")[0]
        accepted = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        request = urllib.request.Request(f"http://{REGISTRY}/v2/{name}/manifests/{VERSION}", method="HEAD", headers=accepted)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            assert answer.headers["Docker-Content-Digest"] == digest


def test_the_pulled_chart_without_values_runs_the_released_images_by_digest(release: Release, pulled: Path) -> None:
    done = helm("template", "fedpipe", pulled, "-n", NAMESPACE, *set_values(API_SERVER))
    assert done.returncode == 0, done.stderr
    (deployment,) = of_kind([one for one in yaml.safe_load_all(done.stdout) if one], "Deployment")

    assert set(re.findall(rf"{re.escape(HOME)}/[\w-]+@sha256:[0-9a-f]{{64}}", json.dumps(deployment))) == release.references


def test_a_node_runs_the_released_operator(release: Release) -> None:
    kubectl = Kubectl("default")
    (operator,) = (one for one in release.references if "operator" in one)
    command = ["python", "-c", "from importlib.metadata import version; print(version('fedpipe'))"]

    kubectl("delete", "pod", NAMESPACE, "--ignore-not-found")
    kubectl.apply(pod(operator, command))
    try:
        kubectl("wait", f"pod/{NAMESPACE}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
        assert kubectl("logs", NAMESPACE).strip() == VERSION
    finally:
        kubectl("delete", "pod", NAMESPACE, "--ignore-not-found")


def pod(image: str, command: list[str]) -> dict[str, Any]:
    """A pod that runs a command in an image."""
    container = {"name": "main", "image": image, "command": command}
    spec = {"restartPolicy": "Never", "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAMESPACE}, "spec": spec}

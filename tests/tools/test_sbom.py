"""`make sbom`: each image's packages as CycloneDX, with the versions and hashes of its lock."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[2]
IMAGES = ["operator", "trainer"]


@pytest.fixture(scope="module")
def sboms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the target writes, by image. `INSTALLED` names a file that is there, so that make installs nothing."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(["make", "sbom", f"DIST={folder}", "INSTALLED=LICENSE"], cwd=ROOT, check=True, capture_output=True)
    return {image: (folder / f"fedpipe-{image}.cdx.json").read_text() for image in IMAGES}


def locked(image: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes of each package that an image installs."""
    lock = (ROOT / f"requirements-{image}.lock").read_text()
    blocks = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)((?:.*\\\n)+.*)$", lock, re.MULTILINE)
    return {name: (version, set(re.findall(r"--hash=sha256:([0-9a-f]{64})", hashes))) for name, version, hashes in blocks}


def listed(component: dict[str, Any]) -> tuple[str, set[str]]:
    """Version and hashes of a component of a bill of materials."""
    return component["version"], {found["content"] for reference in component["externalReferences"] for found in reference["hashes"]}


@pytest.mark.parametrize("image", IMAGES)
def test_a_bill_of_materials_is_valid_cyclonedx(sboms: dict[str, str], image: str) -> None:
    assert json.loads(sboms[image])["specVersion"] == "1.6"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sboms[image]) is None


@pytest.mark.parametrize("image", IMAGES)
def test_a_bill_of_materials_has_every_package_of_the_lock_with_its_version_and_hashes(sboms: dict[str, str], image: str) -> None:
    components = json.loads(sboms[image])["components"]

    assert len(components) > 50
    assert {component["name"]: listed(component) for component in components} == locked(image)


@pytest.mark.parametrize("image", IMAGES)
def test_a_bill_of_materials_names_the_project_and_its_version(sboms: dict[str, str], image: str) -> None:
    component = json.loads(sboms[image])["metadata"]["component"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert (component["name"], component["version"]) == ("fedpipe", version)


def test_ci_writes_the_bills_of_materials_and_audits() -> None:
    script = (ROOT / ".ci" / "run").read_text()

    assert "make --no-print-directory sbom" in script
    assert "make --no-print-directory audit" in script

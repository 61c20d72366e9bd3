"""`make release-images` builds on base images that are named by digest, and on no others; `make release` begins with the version."""

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
DIGEST: Final = "sha256:" + "0123456789abcdef" * 4
PYTHON: Final = f"python:3.11-slim@{DIGEST}"
CUDA: Final = f"nvidia/cuda:13.0.1-base-ubuntu24.04@{DIGEST}"


def release(folder: Path, **variables: str) -> "tuple[subprocess.CompletedProcess[str], list[str]]":
    """Make the release's images with a stand-in for Docker; also return its command lines."""
    return make("release-images", folder, **variables)


def make(target: str, folder: Path, **variables: str) -> "tuple[subprocess.CompletedProcess[str], list[str]]":
    docker, calls = folder / "docker", folder / "calls"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$1" != push ] || echo "latest: digest: {DIGEST} size: 1234"\n')
    docker.chmod(0o755)
    calls.touch()
    done = subprocess.run(
        ["make", "--no-print-directory", target, f"DIST={folder}", *(f"{name}={value}" for name, value in variables.items())],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, calls.read_text().splitlines()


def test_a_release_is_built_on_the_given_digests_and_pushed_with_the_project_s_version(tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    done, calls = release(tmp_path, REGISTRY="registry.example", OPERATOR_BASE=PYTHON, TRAINER_BASE=CUDA)

    assert done.returncode == 0, done.stdout
    assert calls == [
        f"build -f Dockerfile.operator --build-arg BASE_IMAGE={PYTHON} -t registry.example/fedpipe-operator:{version} .",
        f"build -f Dockerfile.trainer --build-arg BASE_IMAGE={CUDA} -t registry.example/fedpipe-trainer:{version} .",
        f"push registry.example/fedpipe-operator:{version}",
        f"push registry.example/fedpipe-trainer:{version}",
    ]
    assert (tmp_path / "images.txt").read_text().splitlines() == [
        f"registry.example/fedpipe-operator:{version}@{DIGEST}",
        f"registry.example/fedpipe-trainer:{version}@{DIGEST}",
    ]


@pytest.mark.parametrize(
    "base",
    [
        "",
        "python:3.11-slim",
        "python:3.11-slim@sha256:0123",
        f"python@{DIGEST}0",
        f"python@{DIGEST.upper()}",
        f"@{DIGEST}",
        f"a b@{DIGEST}",
    ],
)
@pytest.mark.parametrize("variable", ["OPERATOR_BASE", "TRAINER_BASE"])
def test_a_base_image_without_a_digest_is_refused_before_anything_is_built(tmp_path: Path, variable: str, base: str) -> None:
    bases = {"OPERATOR_BASE": PYTHON, "TRAINER_BASE": CUDA} | {variable: base}

    done, calls = release(tmp_path, REGISTRY="registry.example", **bases)

    assert done.returncode != 0
    assert f"and not on {variable}={base}." in done.stdout
    assert calls == []


def test_without_a_registry_nothing_is_built(tmp_path: Path) -> None:
    done, calls = release(tmp_path, OPERATOR_BASE=PYTHON, TRAINER_BASE=CUDA)

    assert (done.returncode != 0, calls) == (True, [])
    assert "Set REGISTRY" in done.stdout


def test_a_release_without_a_version_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    done, calls = make("release", tmp_path, REGISTRY="registry.example", OPERATOR_BASE=PYTHON, TRAINER_BASE=CUDA)

    assert (done.returncode != 0, calls) == (True, [])
    assert "Set VERSION" in done.stdout


def test_a_version_that_the_files_do_not_have_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    done, calls = make("release", tmp_path, VERSION="9.9.9", REGISTRY="registry.example", OPERATOR_BASE=PYTHON, TRAINER_BASE=CUDA)

    assert (done.returncode != 0, calls) == (True, [])
    assert "Version 9.9.9 cannot be released:" in done.stdout
    assert "version of charts/fedpipe/Chart.yaml is 0.1.0: write 9.9.9" in done.stdout

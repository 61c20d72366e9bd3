"""`tools/release.py`: one version in all files, the pushed images' digests in the chart, and checksums."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import release
import yaml

ROOT: Final = Path(__file__).parents[2]
DIGEST: Final = "sha256:" + "0123456789abcdef" * 4
IMAGES: Final = [f"registry.example/team/fedpipe-operator:1.2.3@{DIGEST}", f"localhost:5000/fedpipe-trainer:1.2.3@{DIGEST}"]


def texts(**changed: str) -> dict[str, str]:
    """Files that agree on 1.2.3, but for those that are given by the first word of their name."""
    agreeing = {
        "pyproject.toml": '[project]\nversion = "1.2.3"\n',
        "charts/fedpipe/Chart.yaml": 'version: 1.2.3\nappVersion: "1.2.3"\n',
        "CHANGELOG.md": "## [Unreleased]\n\n## [1.2.3] - 2026-11-29\n",
        "README.md": "REGISTRY/fedpipe-$part:1.2.3",
        "Dockerfile.operator": "REGISTRY/fedpipe-operator:1.2.3",
        "Dockerfile.trainer": "REGISTRY/fedpipe-trainer:1.2.3",
        "tests/e2e/test_readme.py": "/fedpipe-trainer:1.2.3",
    }
    return {name: changed.get(Path(name).stem, text) for name, text in agreeing.items()}


def test_files_that_agree_have_no_disagreements() -> None:
    assert release.disagreements("1.2.3", texts()) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"pyproject": '[project]\nversion = "1.2.2"\n'}, "version of pyproject.toml is 1.2.2: write 1.2.3"),
        ({"Chart": 'version: 1.2.2\nappVersion: "1.2.3"\n'}, "version of charts/fedpipe/Chart.yaml is 1.2.2: write 1.2.3"),
        ({"Chart": "version: 1.2.3\n"}, "appVersion of charts/fedpipe/Chart.yaml is missing: write 1.2.3"),
        ({"README": "fedpipe"}, "tag of the images in README.md is missing: write 1.2.3"),
        ({"README": "/fedpipe-a:1.2.3 /fedpipe-b:1.2.2"}, "tag of the images in README.md is 1.2.2 and 1.2.3: write 1.2.3"),
        (
            {"CHANGELOG": "## [Unreleased]\n"},
            "CHANGELOG.md has no heading '## [1.2.3] - YYYY-MM-DD': turn [Unreleased] into it, and open a new [Unreleased]",
        ),
    ],
)
def test_a_place_with_another_version_is_named_with_what_to_do(changed: dict[str, str], line: str) -> None:
    assert release.disagreements("1.2.3", texts(**changed)) == [line]


def test_a_file_that_no_commit_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in texts().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(release, "ROOT", tmp_path)

    with pytest.raises(release.ReleaseError, match=r"(?s)these files differ from it: commit or remove them.*pyproject\.toml"):
        release.check("1.2.3")


def test_the_packaged_chart_has_the_images_that_were_pushed_and_all_other_values_as_they_were() -> None:
    values = (ROOT / "charts" / "fedpipe" / "values.yaml").read_text()

    changed = yaml.safe_load(release.with_images(values, IMAGES))

    assert changed["operatorImage"] == {"repository": "registry.example/team/fedpipe-operator", "tag": "", "digest": DIGEST}
    assert changed["trainerImage"] == {"repository": "localhost:5000/fedpipe-trainer", "tag": "", "digest": DIGEST}
    images = ("operatorImage", "trainerImage")
    assert {name: value for name, value in changed.items() if name not in images} == {
        name: value for name, value in yaml.safe_load(values).items() if name not in images
    }


def test_comments_and_further_values_of_an_image_stay() -> None:
    image = '{}:\n  # With the registry.\n  repository: a # b\n  tag: \'\'\n  more: 1\n  digest: ""   # c\n\nother: {{digest: ""}}\n'

    changed = release.with_images(image.format("operatorImage"), IMAGES[:1])

    assert changed == image.format("operatorImage").replace(" a ", " registry.example/team/fedpipe-operator ").replace(
        '""   ', f'"{DIGEST}"   '
    )


@pytest.mark.parametrize(
    "values", ['operatorImage:\n  repository: a\nother:\n  digest: ""\n', 'operatorImage: {repository: a, digest: ""}\n']
)
def test_values_in_another_form_are_refused_rather_than_left_as_they_are(values: str) -> None:
    with pytest.raises(release.ReleaseError, match="no operatorImage with the lines repository, tag and digest"):
        release.with_images(values, IMAGES)


@pytest.fixture
def tool(tmp_path: Path) -> Callable[[str, str], str]:
    """Makes a program of this name and this script; returns its path."""

    def made(name: str, script: str) -> str:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
        return str(tmp_path / name)

    return made


@pytest.mark.parametrize(
    ("name", "script"),
    [("docker", f'echo "1.2.3: digest: {DIGEST} size: 1"'), *((name, f'printf {DIGEST} > "$3"') for name in ("podman", "buildah"))],
)
def test_the_digest_is_what_the_push_reports(tmp_path: Path, tool: Callable[[str, str], str], name: str, script: str) -> None:
    release.push(tool(name, script), tmp_path / "dist", ["registry.example/fedpipe-operator:1.2.3"])

    assert (tmp_path / "dist" / "images.txt").read_text() == f"registry.example/fedpipe-operator:1.2.3@{DIGEST}\n"


@pytest.mark.parametrize(
    ("script", "message"), [("exit 7", "docker push failed with exit code 7"), ("echo done", "The push named no digest. It printed: done")]
)
def test_a_push_that_fails_or_names_no_digest_ends_the_release(
    tmp_path: Path, tool: Callable[[str, str], str], script: str, message: str
) -> None:
    with pytest.raises(release.ReleaseError, match=message):
        release.push(tool("docker", script), tmp_path, ["registry.example/fedpipe-operator:1.2.3"])


def test_checksums_are_in_the_form_that_sha256sum_reads(tmp_path: Path) -> None:
    for name in ("fedpipe-1.2.3.tgz", "fedpipe-operator.cdx.json", "fedpipe-trainer.cdx.json", "images.txt"):
        (tmp_path / name).write_text(name)

    release.checksums("1.2.3", tmp_path)

    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == 4

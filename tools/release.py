"""The parts of a release that `make release` cannot say in a line: `python tools/release.py check|push|chart|checksums …`.

`check` refuses a version that the files do not agree on, and a working tree that no commit has. `push` pushes images and notes their
digests. `chart` packages the chart with these digests as the defaults of its images, so that it installs what was built with it, and pushes
it. `checksums` writes SHA256SUMS. What is decided is a function of texts; the shell around it runs docker, podman or buildah, git and helm.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
CHART: Final = "charts/fedpipe"
IMAGES: Final = "images.txt"
SUMS: Final = "SHA256SUMS"
TAGGED: Final = ("README.md", "Dockerfile.operator", "Dockerfile.trainer", "tests/e2e/test_readme.py")
"""Files that name an image with the version as its tag."""
VALUES: Final = {"fedpipe-operator": "operatorImage", "fedpipe-trainer": "trainerImage"}
"""The chart's value of each image."""


class ReleaseError(Exception):
    """A sentence: what is wrong, where, and what to do."""


def disagreements(version: str, texts: Mapping[str, str]) -> list[str]:
    """A line for each place that does not have this version.

    Args:
        version: The version to release, such as 0.1.0.
        texts: pyproject.toml, CHANGELOG.md, Chart.yaml and the files of `TAGGED`, by path.
    """
    chart = texts[f"{CHART}/Chart.yaml"]
    found = {
        "version of pyproject.toml": {tomllib.loads(texts["pyproject.toml"])["project"]["version"]},
        f"version of {CHART}/Chart.yaml": set(re.findall(r"^version: (\S+)$", chart, re.MULTILINE)),
        f"appVersion of {CHART}/Chart.yaml": set(re.findall(r'^appVersion: "(\S+)"$', chart, re.MULTILINE)),
    }
    found |= {f"tag of the images in {name}": set(re.findall(r"/fedpipe-[\w$]+:(\d+\.\d+\.\d+)", texts[name])) for name in TAGGED}
    lines = [
        f"{place} is {' and '.join(sorted(there)) or 'missing'}: write {version}" for place, there in found.items() if there != {version}
    ]
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", texts["CHANGELOG.md"], re.MULTILINE):
        lines.append(f"CHANGELOG.md has no heading '## [{version}] - YYYY-MM-DD': turn [Unreleased] into it, and open a new [Unreleased]")
    return lines


def digest_in(output: str) -> str:
    """The digest of a pushed image in what `docker push` printed, or in the file of `--digestfile`.

    Raises:
        ReleaseError: There is none.
    """
    found: list[str] = re.findall(r"sha256:[0-9a-f]{64}", output)
    if not found:
        raise ReleaseError(f"The push named no digest. It printed: {output.strip() or 'nothing'}")
    return found[-1]


def with_images(values: str, images: Iterable[str]) -> str:
    """A chart's values.yaml with these images (`REPOSITORY:TAG@sha256:…`) as its defaults.

    Raises:
        ReleaseError: The file has no such value in the form that is replaced.
    """
    for image in images:
        reference, _, digest = image.partition("@")
        repository = reference.rpartition(":")[0]
        value = VALUES[repository.rpartition("/")[2]]
        block = rf'^({value}:\n(?: .*\n)*?  repository: )\S+(.*(?:\n .*)*?\n  digest: )""'
        values, replaced = re.subn(block, rf'\g<1>{repository}\g<2>"{digest}"', values, flags=re.MULTILINE)
        if replaced != 1:
            raise ReleaseError(f"{CHART}/values.yaml has no {value} with the lines repository, tag and digest: correct `with_images`")
    return values


def sums(files: Iterable[Path]) -> str:
    """The files' checksums, in the form that `sha256sum --check` reads."""
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)


def check(version: str) -> None:
    """Refuse a version that the files do not have, and changes that no commit has: they would be in the images."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CHANGELOG.md", f"{CHART}/Chart.yaml", *TAGGED)}
    wrong = disagreements(version, texts)
    if wrong:
        raise ReleaseError("\n".join([f"Version {version} cannot be released:", *(f"  {line}" for line in wrong)]))
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain")
    if changed:
        raise ReleaseError(f"A release is built from a commit, and these files differ from it: commit or remove them.\n{changed}")


def push(tool: str, folder: Path, images: list[str]) -> None:
    """Push the images, and write each with its digest to `images.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    pushed = [f"{image}@{_push(tool, image)}\n" for image in images]
    (folder / IMAGES).write_text("".join(pushed), encoding="utf-8")


def _push(tool: str, image: str) -> str:
    """Push an image; return its digest. Docker prints it, podman and buildah write it to a file."""
    if Path(tool).name == "docker":
        return digest_in(_output(tool, "push", image))
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as file:
        _output(tool, "push", "--digestfile", file.name, image)
        return digest_in(file.read())


def chart(version: str, registry: str, folder: Path, helm_options: list[str]) -> None:
    """Package the chart with the images of `images.txt`, and push it to `oci://REGISTRY/charts`."""
    images = (folder / IMAGES).read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as above:
        copy = Path(shutil.copytree(ROOT / CHART, Path(above) / "fedpipe"))
        values = copy / "values.yaml"
        values.write_text(with_images(values.read_text(encoding="utf-8"), images), encoding="utf-8")
        _output("helm", "package", str(copy), "--destination", str(folder))
    _output("helm", "push", str(folder / f"fedpipe-{version}.tgz"), f"oci://{registry}/charts", *helm_options)


def checksums(version: str, folder: Path) -> None:
    """Write the checksums of the chart, the bills of materials and the list of images."""
    names = (f"fedpipe-{version}.tgz", "fedpipe-operator.cdx.json", "fedpipe-trainer.cdx.json", IMAGES)
    (folder / SUMS).write_text(sums(folder / name for name in names), encoding="utf-8")


def _output(*command: str) -> str:
    """Run a command, and print what it prints; return its standard output.

    Raises:
        ReleaseError: It failed.
    """
    print("+", *command, flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError as error:
        raise ReleaseError(f"{command[0]} is not on the PATH: install it") from error
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise ReleaseError(f"{' '.join(command[:2])} failed with exit code {done.returncode}: its message is above")
    return done.stdout


def arguments_of(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, positional in {"check": ["version"], "push": ["tool"], "chart": ["version", "registry"], "checksums": ["version"]}.items():
        command = commands.add_parser(name)
        for one in positional:
            command.add_argument(one)
        command.add_argument("--folder", type=Path, default=ROOT / "dist", help="where the parts of the release are")
        command.add_argument("rest", nargs="*", help="of push: the images; of chart, behind --: options of `helm push`")
    return parser.parse_args(words)


def main() -> int:
    """Run the command of the command line; the exit code is 1 if it was refused or failed."""
    given = arguments_of(sys.argv[1:])
    try:
        match given.command:
            case "check":
                check(given.version)
            case "push":
                push(given.tool, given.folder, given.rest)
            case "chart":
                chart(given.version, given.registry, given.folder, given.rest)
            case "checksums":
                checksums(given.version, given.folder)
    except ReleaseError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

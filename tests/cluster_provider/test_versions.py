"""Each program's version is defined once, in the go.mod that builds it."""

import re

import pytest
from testcluster import versions
from testcluster.versions import KUEUE, PROGRAMS, PROGRAMS_FOLDER, Program

ALL = (*PROGRAMS.values(), KUEUE)
MODULES = sorted({program.module for program in ALL})


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.name)
def test_every_program_has_a_version_and_its_module_names_it(program: Program) -> None:
    assert re.fullmatch(r"v\d[\w.+-]*", program.version)
    assert program.package != "." or (program.folder / "main.go").exists()
    assert program.package == "." or f'"{program.package}"' in (program.folder / "tools.go").read_text()


def test_every_module_builds_a_program() -> None:
    assert sorted(folder.name for folder in PROGRAMS_FOLDER.iterdir() if folder.is_dir()) == MODULES


def test_all_parts_of_kubernetes_are_of_one_release() -> None:
    version = PROGRAMS["kubelet"].version

    replaced = re.findall(r"^\t(\S+) => (\S+) (\S+)$", (PROGRAMS_FOLDER / "kubernetes" / "go.mod").read_text(), re.MULTILINE)

    assert len(replaced) > 30
    assert {(old == new, found) for old, new, found in replaced} == {(True, version.replace("v1.", "v0."))}


def test_kubernetes_reports_its_version() -> None:
    flags = PROGRAMS["kube-apiserver"].flags

    assert f"gitVersion={PROGRAMS['kube-apiserver'].version} " in flags
    assert "{" not in flags


@pytest.mark.parametrize("module", [module for module in MODULES if module != "pause"])
def test_every_download_of_a_module_is_pinned_by_hash(module: str) -> None:
    lines = (PROGRAMS_FOLDER / module / "go.sum").read_text().splitlines()

    assert lines
    assert all(re.fullmatch(r"\S+ v\S+ h1:[\w+/]+=", line) for line in lines)


@pytest.mark.parametrize("go_mod", ["require a.b/c v1.2.3\n", "require (\n\ta.b/cd v9\n\ta.b/c v1.2.3\n)\n"])
def test_a_required_version_is_found(go_mod: str) -> None:
    assert versions.required_version(go_mod, "a.b/c") == "v1.2.3"


def test_a_module_that_is_not_required_is_reported() -> None:
    with pytest.raises(LookupError, match=r"requires no a\.b/x"):
        versions.required_version("require a.b/c v1\n", "a.b/x")

"""The workflows for a forge call `.ci/run`, `make nightly` and `make release`, with pinned actions and no more rights than that takes."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

WORKFLOWS: Final = Path(__file__).parents[2] / ".github" / "workflows"
RIGHTS: Final = {"ci": {"contents": "read"}, "nightly": {"contents": "read"}, "release": {"contents": "read", "packages": "write"}}


def workflow(name: str) -> dict[Any, Any]:
    """A workflow; YAML takes its key `on` for the value true."""
    found: dict[Any, Any] = yaml.safe_load((WORKFLOWS / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def test_there_are_no_other_workflows() -> None:
    assert {file.stem for file in WORKFLOWS.iterdir()} == RIGHTS.keys()


@pytest.mark.parametrize("name", RIGHTS)
def test_a_workflow_has_no_more_rights_than_it_needs(name: str) -> None:
    assert workflow(name)["permissions"] == RIGHTS[name]
    assert all("permissions" not in job for job in workflow(name)["jobs"].values())


@pytest.mark.parametrize("name", RIGHTS)
def test_every_action_is_pinned_by_commit_with_its_version_beside_it(name: str) -> None:
    used = re.findall(r"uses: (.*)", (WORKFLOWS / f"{name}.yaml").read_text(encoding="utf-8"))

    assert len(used) >= 1
    assert [one for one in used if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)] == []


def test_a_change_is_checked_by_the_script_that_every_machine_runs() -> None:
    assert [step["run"] for step in steps("ci") if "run" in step] == ["bash .ci/run"]
    assert workflow("ci")[True] == {"pull_request": None, "push": {"branches": ["main"]}}


def test_what_is_too_long_for_a_change_runs_every_night() -> None:
    assert [step["run"] for step in steps("nightly") if "run" in step] == ["make nightly"]
    assert workflow("nightly")[True].keys() == {"schedule", "workflow_dispatch"}


def test_a_tag_is_released_by_make_release_after_a_login_and_nothing_else() -> None:
    login, release = [step["run"] for step in steps("release") if "run" in step]

    assert [line.partition("|")[2].split()[:2] for line in login.splitlines()] == [["docker", "login"], ["helm", "registry"]]
    given = ("REGISTRY", "OPERATOR_BASE", "TRAINER_BASE")
    assert release == " ".join(['make release VERSION="${GITHUB_REF_NAME#v}"', *(f'{one}="${one}"' for one in given)])
    assert workflow("release")["jobs"]["release"]["env"] == {one: f"${{{{ vars.{one} }}}}" for one in given}
    assert workflow("release")[True] == {"push": {"tags": ["v*"]}}
    assert steps("release")[-1]["with"]["path"] == "dist/"


@pytest.mark.parametrize("name", RIGHTS)
def test_no_command_has_an_expression_in_it(name: str) -> None:
    assert [step["run"] for step in steps(name) if "${{" in step.get("run", "")] == []

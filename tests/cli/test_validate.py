"""`fedpipe validate`, and the reading of files that all commands share: problems and the exit status."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedpipe_operator.cli import app_for
from fedpipe_operator.cli.files import load

ROOT = Path(__file__).parents[2]

SITE = """\
apiVersion: fedpipe.io/v1alpha1
kind: EdgeSite
metadata: {name: north, labels: {demo: yes-please}}
spec:
  data: {train: train.jsonl, validation: validation.csv, volume: {persistentVolumeClaim: {claimName: notes}}}
  modelClaims: [models]
  policy: {minSites: 1}
"""

RUN = """\
apiVersion: fedpipe.io/v1alpha1
kind: FederatedFineTune
metadata: {name: notes}
spec:
  model: {source: "pvc://models/base"}
  task: {type: SequenceClassification}
  sites: {selector: {matchLabels: {demo: yes-please}}}
  store: {bucket: fedpipe}
"""


def validate(*paths: Path) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app_for(["validate"]), ["validate", *map(str, paths)])
    return result.exit_code, result.output.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "sites.yaml").write_text(SITE)
    (tmp_path / "notes.txt").write_text("not YAML: [")
    return tmp_path


def test_every_valid_object_of_a_folder_is_named(folder: Path) -> None:
    assert validate(folder) == (0, ["EdgeSite north: valid", "FederatedFineTune notes: valid"])


def test_the_problems_of_all_files_are_printed_in_order_and_the_status_is_2(folder: Path) -> None:
    (folder / "run.yaml").write_text(RUN + "  suspend: 1\n  colour: red\n")
    (folder / "sites.yaml").write_text(SITE + "  maxConcurrentJobs: 0\n")

    status, lines = validate(folder)

    assert status == 2
    assert [line.split(": ")[0:3:2] for line in lines] == [
        [f"{folder}/run.yaml:9", "spec.suspend"],
        [f"{folder}/run.yaml:10", "spec.colour"],
        [f"{folder}/sites.yaml:8", "spec.maxConcurrentJobs"],
    ]


def test_two_objects_of_one_kind_and_name_are_refused_in_any_files(folder: Path) -> None:
    (folder / "more.yaml").write_text(SITE)

    status, lines = validate(folder)

    assert status == 2
    assert lines == [
        f"{folder}/sites.yaml:3: document 1, EdgeSite north: metadata.name: 2 objects of kind EdgeSite have this name: rename all but one"
    ]


def test_a_run_that_too_few_sites_allow_is_a_problem_of_its_sites(folder: Path) -> None:
    (folder / "sites.yaml").write_text(SITE.replace("{minSites: 1}", "{}"))

    status, lines = validate(folder)

    assert (status, len(lines)) == (2, 1)
    assert "FederatedFineTune notes: spec.sites: a round needs 1 of 1 sites, and these may take no part: north: TooFewSites" in lines[0]


def test_a_run_of_fewer_sites_than_its_rule_needs_is_a_problem_of_its_sites(folder: Path) -> None:
    (folder / "sites.yaml").write_text("---\n".join(SITE.replace("north", name) for name in ("north", "south", "west", "east")))
    (folder / "run.yaml").write_text(RUN + "  aggregation: {rule: MultiKrum}\n")

    status, lines = validate(folder)

    assert (status, len(lines)) == (2, 1)
    rule = "aggregation.rule MultiKrum with maliciousSites 1 needs the updates of 5 sites, and 4 can send one: add sites"
    assert f"FederatedFineTune notes: spec.sites: {rule}" in lines[0]


def test_a_run_whose_sites_are_elsewhere_may_have_any_rule(folder: Path) -> None:
    (folder / "sites.yaml").unlink()
    (folder / "run.yaml").write_text(RUN + "  aggregation: {rule: MultiKrum}\n")

    assert validate(folder)[0] == 0


def test_a_run_whose_model_is_in_a_claim_that_no_site_names_or_that_holds_data_is_a_problem(folder: Path) -> None:
    (folder / "sites.yaml").write_text(SITE.replace("  modelClaims: [models]\n", ""))
    _, (not_named,) = validate(folder)
    holds_data = SITE.replace("north", "south").replace("yes-please", "other").replace("claimName: notes", "claimName: models")
    (folder / "sites.yaml").write_text(f"{SITE}---\n{holds_data.replace('[models]', '[]')}")
    _, (private,) = validate(folder)

    assert "north: ModelClaimNotAllowed: spec.model.source mounts the claim models, and modelClaims of the site is empty" in not_named
    assert "north: ModelClaimNotAllowed: the claim models of spec.model.source holds the data or the cache of a site" in private


def test_a_site_that_forbids_the_run_is_no_problem_where_enough_others_allow_it(folder: Path) -> None:
    others = [SITE.replace("north", name) for name in ("south", "west", "east")]
    forbids = SITE.replace("{minSites: 1}", "{runs: {names: [another]}}")
    (folder / "sites.yaml").write_text("---\n".join([*others, forbids]))
    (folder / "run.yaml").write_text(RUN.replace("selector:", "quorum: 0.7, selector:"))

    assert validate(folder)[0] == 0


def test_the_same_name_in_two_namespaces_is_no_duplicate(folder: Path) -> None:
    (folder / "more.yaml").write_text(SITE.replace("name: north", "name: north, namespace: other"))

    assert validate(folder)[0] == 0


@pytest.mark.parametrize("change", [("demo: yes-please}}}", "demo: other}}}"), ("name: notes", "name: notes, namespace: other")])
def test_a_run_that_matches_none_of_the_given_sites_is_refused(folder: Path, change: tuple[str, str]) -> None:
    (folder / "run.yaml").write_text(planned("", "site: north, ").replace(*change))

    status, lines = validate(folder)

    assert status == 2
    assert [line for line in lines if "spec.sites.selector: no EdgeSite given (north) is in the run" in line] == lines != []


def planned(*plans: str, mode: str = "Manual") -> str:
    return f"{RUN}  planning:\n    mode: {mode}\n    plans:\n" + "".join(f"    - {{{plan}bits: 16, rank: 4, steps: 4}}\n" for plan in plans)


@pytest.mark.parametrize("mode", ["Manual", "Auto"])
def test_a_given_plan_of_a_site_that_does_not_exist_is_refused(folder: Path, mode: str) -> None:
    (folder / "run.yaml").write_text(planned("site: north, ", "site: nowhere, ", mode=mode))

    status, lines = validate(folder)

    assert status == 2
    assert [line.partition(": document 1, FederatedFineTune notes: ")[::2] for line in lines] == [
        (
            f"{folder}/run.yaml:13",
            "spec.planning.plans[1].site: no EdgeSite given in the run's namespace (north) is named nowhere: correct it, or add one",
        )
    ]


def test_in_mode_manual_a_selected_site_without_a_plan_is_refused(folder: Path) -> None:
    (folder / "south.yaml").write_text(SITE.replace("name: north", "name: south"))
    (folder / "run.yaml").write_text(planned("site: north, "))

    status, lines = validate(folder)

    assert status == 2
    assert [line.partition(": spec.")[2] for line in lines] == [
        "planning.plans: no plan for south: add one for each, add one without a site, or narrow spec.sites.selector"
    ]


@pytest.mark.parametrize(
    ("run", "labels"),
    [
        pytest.param(planned("site: north, ", ""), "demo: yes-please", id="a plan for every other site"),
        pytest.param(planned("site: north, "), "demo: other", id="a site that is not selected"),
        pytest.param(planned("site: north, ", mode="Auto"), "demo: yes-please", id="mode Auto"),
    ],
)
def test_a_site_needs_no_plan_of_its_own_with(folder: Path, run: str, labels: str) -> None:
    (folder / "south.yaml").write_text(SITE.replace("name: north", "name: south").replace("demo: yes-please", labels))
    (folder / "run.yaml").write_text(run)

    assert validate(folder)[0] == 0


def test_an_invalid_site_is_not_reported_as_missing_as_well(folder: Path) -> None:
    (folder / "sites.yaml").write_text(SITE + "  maxConcurrentJobs: 0\n")
    (folder / "south.yaml").write_text(SITE.replace("name: north, labels: {demo: yes-please}", "name: south"))
    (folder / "run.yaml").write_text(planned("site: north, "))

    status, lines = validate(folder)

    assert status == 2
    assert [line.split(": ")[2] for line in lines] == ["spec.maxConcurrentJobs"]


def test_a_run_without_any_sites_in_the_files_is_valid(folder: Path) -> None:
    assert validate(folder / "run.yaml") == (0, ["FederatedFineTune notes: valid"])


def test_files_that_cannot_be_read_are_problems(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.yaml").write_bytes("kind: Bär".encode("latin-1"))

    status, lines = validate(tmp_path / "empty", tmp_path / "latin.yaml", tmp_path / "none.yaml")

    assert status == 2
    assert [line.partition(":1: ")[2] for line in lines] == [
        "this folder has no *.yaml or *.yml file: name the file",
        "not a text file in UTF-8: save it as UTF-8",
        "no such file: correct the path",
    ]


def test_the_other_commands_get_the_objects_of_valid_files(folder: Path) -> None:
    objects = load([folder])

    assert [site.name for site in objects.sites] == ["north"]
    assert [run.metadata.name for run in objects.runs] == ["notes"]


def test_the_other_commands_exit_with_status_2_on_invalid_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.yaml").write_text(RUN + "  suspend: 1\n")

    with pytest.raises(typer.Exit) as ended:
        load([folder])

    assert ended.value.exit_code == 2
    assert "spec.suspend" in capsys.readouterr().err


def test_validate_imports_no_library_that_it_does_not_need(folder: Path) -> None:
    unneeded = {"boto3", "torch", "plotly", "scipy"}
    code = f"import sys; from fedpipe_operator.cli import main\ntry: main()\nfinally: print(sorted(set(sys.modules) & {unneeded}))"
    result = subprocess.run([sys.executable, "-c", code, "validate", folder], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "[]"), result.stderr


def test_the_console_script_prints_problems(tmp_path: Path) -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("fedpipe"), "validate", tmp_path / "none.yaml"], capture_output=True, text=True, check=False
    )

    assert result.returncode == 2
    assert "no such file" in result.stdout

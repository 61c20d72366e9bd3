"""`fedpipe validate --data`: what is printed of the data of each site, and the exit status. The trainer answers in this process."""

import json
from pathlib import Path
from typing import Final

import pytest
import yaml
from click.testing import Result
from local_runs import a_fleet
from typer.testing import CliRunner

from fedpipe_operator.cli import app_for, check_data
from fedpipe_operator.cli.check_data import lines_of
from fedpipe_trainer.contract import Failure, FailureReason, Wire
from fedpipe_trainer.contract.inspection import FileCheck, SiteCheck, TokenCheck
from fedpipe_trainer.inspection import answer
from fedpipe_trainer.settings import Settings

GOOD: Final = FileCheck(rows=40, labels={"art": 24, "food": 16})


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_fleet(tmp_path_factory.mktemp("fleet")).folder


@pytest.fixture(autouse=True)
def _ask_in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ask_here(question: Wire, kind: type[Wire]) -> Wire:
        return kind.model_validate_json(answer(question.to_json(), Settings(cache=tmp_path)))

    monkeypatch.setattr(check_data, "ask", ask_here)


def validate(*arguments: object) -> Result:
    return CliRunner().invoke(app_for(["validate"]), ["validate", *map(str, arguments)])


def test_the_data_of_every_site_are_checked(fleet: Path) -> None:
    result = validate(fleet, "--data")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[4:10] == [
        "EdgeSite north: data checked",
        "  training: 24 rows",
        "  training labels: 'art' 12, 'food' 0, 'sport' 12",
        "  training: no row has the label 'food', which the run declares",
        "  validation: 6 rows",
        "  validation labels: 'art' 3, 'food' 0, 'sport' 3",
    ]
    assert "  tokens: 24 samples of 17 tokens on average, the longest has 18" in result.stdout


def test_where_the_run_declares_no_labels_those_of_one_site_alone_are_told(fleet: Path, tmp_path: Path) -> None:
    run, *sites = yaml.safe_load_all((fleet / "run.yaml").read_text())
    del run["spec"]["task"]["labels"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump_all([run, *sites]))
    for site, labels in {"north": ("art", "food"), "south": ("food", "art"), "west": ("art", "sport")}.items():
        (tmp_path / site).mkdir()
        for part in ("train", "validation"):
            rows = "".join(json.dumps({"text": f"note {at}", "label": labels[at % 2]}) + "\n" for at in range(8))
            (tmp_path / site / f"{part}.jsonl").write_text(rows)
    for site in sites:
        claim = tmp_path / "volumes" / site["spec"]["data"]["volume"]["persistentVolumeClaim"]["claimName"]
        claim.parent.mkdir(exist_ok=True)
        claim.symlink_to(tmp_path / site["metadata"]["name"])

    told = validate(tmp_path / "run.yaml", "--data").stdout.splitlines()[-1]

    assert "only labels count that two sites have" in told
    assert told.endswith("are dropped: 'sport' (west): declare task.labels to learn them, or correct the data")
    assert "two sites have" not in validate(tmp_path / "run.yaml", "--data", "--site", "west").stdout


def test_one_site_is_checked_in_another_folder(fleet: Path, tmp_path: Path) -> None:
    for part in ("train", "validation"):
        (tmp_path / f"{part}.jsonl").write_text(json.dumps({"text": "bread", "label": "food"}) + "\n")

    result = validate(fleet, "--data", "--site", "south", "--folder", tmp_path)

    assert result.exit_code == 0
    assert "  training labels: 'art' 0, 'food' 1, 'sport' 0" in result.stdout
    assert "north: data" not in result.stdout


def test_a_site_whose_profile_would_fail_is_told_and_the_status_is_2(fleet: Path, tmp_path: Path) -> None:
    result = validate(fleet, "--data", "--site", "west", "--folder", tmp_path)

    assert result.exit_code == 2
    assert "EdgeSite west: its profile would fail" in result.stdout
    assert f"  BadData: the data file {tmp_path}/train.jsonl cannot be read: No such file or directory" in result.stdout


@pytest.mark.parametrize(
    ("source", "status", "told"),
    [
        ("file:///no/such", 2, "  BadModel: the model folder /no/such does not exist on this machine"),
        ("pvc://elsewhere/base", 0, "  not checked: the model's folder in its claim, "),
        ("s3://bucket/base", 0, "  not checked: the model s3://bucket/base is in a bucket"),
    ],
)
def test_a_local_path_without_a_model_fails_and_a_model_that_is_elsewhere_is_not_checked(
    fleet: Path, tmp_path: Path, source: str, status: int, told: str
) -> None:
    run, *sites = yaml.safe_load_all((fleet / "run.yaml").read_text())
    run["spec"]["model"] = {"source": source}
    for site in sites:
        site["spec"]["modelClaims"] = ["elsewhere"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump_all([run, *sites]))

    result = validate(tmp_path / "run.yaml", "--data", "--volumes", fleet / "volumes", "--site", "north")

    assert (result.exit_code, result.stdout.count(told)) == (status, 1), result.output


def test_no_cell_of_the_data_is_printed(fleet: Path, tmp_path: Path) -> None:
    for part in ("train", "validation"):
        rows = [{"text": f"c4n4ry {at}", "label": f"c4n4ry {at}", "c4n4ry": "c4n4ry"} for at in range(9)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "c4n4ry\n")

    result = validate(fleet, "--data", "--site", "west", "--folder", tmp_path)

    assert result.exit_code == 2
    assert "c4n4ry" not in result.output


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--data", "--folder", "."], 1, "SitesAmbiguous: --folder holds the data of one site, and these are north, south, west"),
        (["--data", "--site", "east"], 1, "NothingToCheck: no run of these files selects a site east: correct --site"),
        (["--site", "north"], 2, "--site, --volumes and --folder say which data are checked: add --data"),
    ],
)
def test_options_that_do_not_fit_are_refused(fleet: Path, options: list[str], status: int, message: str) -> None:
    result = validate(fleet, *options)

    assert result.exit_code == status
    assert message in result.stderr


def test_sites_without_a_run_or_a_run_without_sites_cannot_be_checked(fleet: Path, tmp_path: Path) -> None:
    run, *sites = yaml.safe_load_all((fleet / "run.yaml").read_text())
    for name, documents in (("run.yaml", [run]), ("sites.yaml", sites)):
        (tmp_path / name).write_text(yaml.safe_dump_all(documents))

    assert "NothingToCheck: the data are checked for a task" in validate(tmp_path / "sites.yaml", "--data").stderr
    assert "NothingToCheck: these files have no EdgeSite that the run selects" in validate(tmp_path / "run.yaml", "--data").stderr


def test_problems_of_the_yaml_come_first_and_no_data_are_read(fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text((fleet / "run.yaml").read_text().replace("maxLength: 32", "maxLength: 1"))

    result = validate(tmp_path, "--data")

    assert result.exit_code == 2
    assert "spec.task.maxLength: is 1, but must be at least 8" in result.stdout
    assert "EdgeSite" not in result.stdout.replace("FederatedFineTune", "")


def test_problems_and_what_was_not_checked_come_before_the_numbers() -> None:
    failure = Failure(reason=FailureReason.BAD_MODEL, message="it is cut short")
    tokens = TokenCheck(samples=40, mean=30.4, longest=900, max_length=64, cut=3, target_share=0.4)

    advice = "raise task.maxLength to keep them, as far as the model has positions"

    lines = lines_of(SiteCheck(site="ward", failures=(failure,), warnings=("no hub",), train=GOOD, tokens=tokens))

    assert lines == [
        "EdgeSite ward: its profile would fail",
        "  BadModel: it is cut short",
        "  not checked: no hub",
        "  training: 40 rows",
        "  training labels: 'art' 24, 'food' 16",
        "  tokens: 40 samples of 30 tokens on average, the longest has 900",
        f"  tokens: 3 samples are longer than task.maxLength, 64, and are cut: {advice}",
        "  tokens: 40% of them count in the loss: the answers'",
    ]


def test_of_many_labels_some_are_named_and_the_rest_counted() -> None:
    many = FileCheck(rows=99, skipped=2, dropped=1, notes=("why",), labels={f"l{at}": 1 for at in range(25)}, other_labels=3)

    lines = lines_of(SiteCheck(site="ward", validation=many))

    assert lines[1:3] == ["  validation: 99 rows, 2 skipped, 1 dropped", "  why"]
    assert lines[3].endswith("'l19' 1, 5 more, 3 that are not named")

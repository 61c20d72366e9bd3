"""The commands on a run whose work is done: what they print, where they write, how they end. No trainer is started."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_in_runs import Machine, a_run
from trainer_results import an_evaluation, good_trainer
from typer.testing import CliRunner

from fedpipe_operator import names
from fedpipe_operator.cli import app_for
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.local.session import compare, local_only_sessions
from fedpipe_operator.rounds import Run
from fedpipe_trainer.contract import EvaluateTask, Sample

ACCURACY = {
    "toy": {0: 0.125, 1: 0.75, 2: 0.5},
    "toy-local-only-site-a": {1: 0.25},
    "toy-local-only-site-b": {1: 0.625},
    "toy-local-only-site-c": {1: 0.375},
}
"""By run and round; the second round is worse than the first, which is exported."""


def judged(task: Any, folder: Path) -> Any:
    """A trainer by whose evaluations every model has an accuracy and a loss of its own, and answers that name their round."""
    if isinstance(task, EvaluateTask):
        accuracy = ACCURACY[task.run.name][task.round]
        answer = Sample(text=f"a text of {task.site}", expected="a", predicted=f"answer {task.round}")
        return an_evaluation(task, metrics={"accuracy": accuracy}, loss=1 - accuracy, examples=(answer,))
    return good_trainer(task, folder)


class Place:
    """A folder with the YAML of a run, and the folder that its runs leave."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        run = a_run(**spec)
        bare = run.resource.model_copy(update={"metadata": run.resource.metadata.model_copy(update={"uid": ""})})
        self.folder, self.run, self.runs = folder, Run(bare, run.sites), RunFolder(folder / "runs", bare)
        documents = [json.loads(one.to_json()) for one in (bare, *run.sites)]
        for document in documents:
            document.pop("status")
        (folder / "run.yaml").write_text(yaml.safe_dump_all(documents))

    def work(self, *, until: str, trainer: Callable[[Any, Path], Any] = judged) -> None:
        """Do what `fedpipe run` would do, with a stand-in for the trainers: to the plan, to the end, or the comparison too."""
        with self.runs.locked():
            machine = Machine(self.runs.path, Run(self.runs.adopt(), self.run.sites), trainer)
            session = machine.session(on_status=self.runs.write_status)
            while until == "plan" and session.store.read(names.round_plan(1)) is None:
                session.reconcile()
                for name in machine.backend.active_jobs():
                    machine.backend.work(name)
            if until in ("end", "comparison"):
                machine.drive({"run": session})
            if until == "comparison":
                baselines = local_only_sessions(session)
                machine.drive(baselines)
                compare(session, baselines)

    def call(self, command: str, *options: str) -> tuple[int, list[str]]:
        """The exit status, and the lines with white space folded."""
        arguments = [command, str(self.folder), "--output", str(self.folder / "runs"), *options]
        result = CliRunner(env={"COLUMNS": "300"}).invoke(app_for([command]), arguments)
        return result.exit_code, [" ".join(line.split()) for line in result.output.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that is over and compared; all its models differ. Tests must not change what other tests read."""
    place = Place(tmp_path_factory.mktemp("compared"))
    place.work(until="comparison")
    return place


def rows_of(lines: list[str]) -> list[str]:
    """The rows of the comparison table, without the other lines between them."""
    return [line for line in lines if re.match(r"(base model|site-., local only|federated) ?", line)]


def test_the_comparison_table_shows_all_models_and_marks_the_best(compared: Place) -> None:
    status, lines = compared.call("run")

    assert status == 0
    assert rows_of(lines) == [
        "base model, untouched 0 12.5 %",
        "site-a, local only 100 25.0 %",
        "site-b, local only 100 62.5 %",
        "site-c, local only 100 37.5 %",
        "federated 300 75.0 % best",
    ]


def test_where_lower_is_better_the_comparison_table_marks_the_lowest(tmp_path: Path) -> None:
    place = Place(tmp_path, rounds={"count": 2, "target": {"metric": "loss", "value": 0.01}})
    place.work(until="comparison")

    _, lines = place.call("run")

    assert [re.sub(r"[0-9.]+ %", "", line) for line in rows_of(lines)] == [
        "base model, untouched 0 0.875 ",
        "site-a, local only 100 0.750 ",
        "site-b, local only 100 0.375 ",
        "site-c, local only 100 0.625 ",
        "federated 300 0.250  best",
    ]


def test_a_local_only_baseline_that_is_best_is_marked_and_the_federated_model_is_not(tmp_path: Path) -> None:
    def better_local_only(task: Any, folder: Path) -> Any:
        if isinstance(task, EvaluateTask) and task.run.name == "toy-local-only-site-b":
            return an_evaluation(task, metrics={"accuracy": 0.875})
        return judged(task, folder)

    place = Place(tmp_path)
    place.work(until="comparison", trainer=better_local_only)

    assert [line for line in rows_of(place.call("run")[1]) if line.endswith("best")] == ["site-b, local only 100 87.5 % best"]


def test_the_documents_shown_are_those_of_the_exported_round_on_the_screen_and_in_the_report(compared: Place) -> None:
    _, lines = compared.call("run")
    page = (compared.runs.store / names.REPORT).read_text()

    assert [line for line in lines if "a text of" in line] == [f"✗ a answer 1 a text of site-{site}" for site in "abc"]
    assert "answer 1" in page
    assert "answer 2" not in page


def test_a_run_that_is_over_tells_its_rounds_and_where_everything_is(compared: Place) -> None:
    _, lines = compared.call("run", "--no-compare")

    assert [line.split(",")[:2] for line in lines if line.startswith("round ")] == [
        ["round 1: 3/3 updates", " accuracy 75.0 %"],
        ["round 2: 3/3 updates", " accuracy 50.0 %"],
    ]
    assert lines[-3:] == [
        f"{name} {compared.runs.store}/{name}".replace("  ", " ") for name in ("export/adapter", "export/merged", "report.html")
    ]


def test_without_a_comparison_there_is_no_table(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.work(until="end")

    status, lines = place.call("run", "--no-compare")

    assert status == 0
    assert rows_of(lines) == []
    assert any("After round 1" in line for line in (place.runs.store / names.REPORT).read_text().splitlines())


def test_a_run_that_failed_says_why_where_its_logs_are_and_what_to_do(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.work(until="end", trainer=lambda _task, _folder: None)

    status, lines = place.call("run")

    assert status == 1
    assert lines[-2].startswith("failed: QuorumOutOfReach: ")
    assert lines[-1] == f"logs: {place.runs.path}/jobs; mend what is said, then start over with --fresh"


@pytest.mark.parametrize("option", [("--rounds", "1"), ("--max-steps", "3"), ("--seed", "5")])
def test_an_option_that_changes_the_spec_makes_it_another_run(compared: Place, option: tuple[str, str]) -> None:
    status, lines = compared.call("run", *option)

    assert status == 1
    assert lines[-1].startswith("OtherSpec: ")


def test_a_second_command_on_a_run_under_way_is_refused(compared: Place) -> None:
    with compared.runs.locked():
        status, lines = compared.call("run")

    assert status == 1
    assert lines[-1].startswith("RunInProgress: ")


def test_plan_prints_each_sites_plan_and_why_and_trains_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.work(until="plan")
    before = sorted(place.runs.store.rglob("*.json"))

    status, lines = place.call("plan")

    assert status == 0
    table = [line for line in lines if line.startswith("│ site-")]
    assert [line.split("│")[1:6] for line in table] == [[f" site-{site} ", " 16 ", " 2 ", " 4 ", " 2 "] for site in "abc"]
    assert lines.count("16 bits: the largest value in planning.bits") == 3
    assert sorted(place.runs.store.rglob("*.json")) == before


def test_plan_says_which_site_is_left_out_and_why(tmp_path: Path) -> None:
    place = Place(tmp_path, sites={"quorum": 0.6})
    small = place.run.sites[2].model_copy(deep=True)
    capacity = small.spec.capacity.model_copy(update={"memory": "64Mi"})
    sites = (*place.run.sites[:2], small.model_copy(update={"spec": small.spec.model_copy(update={"capacity": capacity})}))
    place.run = Run(place.run.resource, sites)
    place.work(until="plan")

    _, lines = place.call("plan")

    assert len([line for line in lines if line.startswith("│ site-")]) == 2
    assert lines[lines.index("site-c is left out") + 1].startswith("needs at least ")


def test_plan_of_a_run_that_failed_says_why(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.work(until="end", trainer=lambda _task, _folder: None)

    status, lines = place.call("plan")

    assert status == 1
    assert lines[-1].startswith("failed: QuorumOutOfReach: ")


def test_report_draws_a_run_under_way_as_far_as_it_came(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.work(until="plan")

    with place.runs.locked():
        status, lines = place.call("report")

    assert (status, lines) == (0, [str(place.runs.store / "report.html")])
    page = (place.runs.store / "report.html").read_text()
    assert "Unfinished" in page
    assert "No round has been evaluated yet." in page


def test_report_draws_a_run_that_was_started_with_other_options_than_the_file_says(tmp_path: Path) -> None:
    Place(tmp_path, rounds={"count": 1}).work(until="end")

    status, _ = Place(tmp_path).call("report")

    assert status == 0
    assert "Complete" in (tmp_path / "runs/default/toy/store/report.html").read_text()


def test_report_of_a_run_that_never_began_says_so_and_makes_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)

    status, lines = place.call("report")

    assert status == 1
    assert lines == [f"{place.runs.path} holds no run of this name: start it with fedpipe run, or correct --output"]
    assert not (tmp_path / "runs").exists()

"""The commands after a run: what they print, where they write, their exit status. No trainer is started."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_in_runs import Machine, a_run
from trainer_results import an_evaluation, good_trainer
from typer.testing import CliRunner

from fedpipe_operator import names
from fedpipe_operator.cli import app_for
from fedpipe_operator.cli.local_run import LocalRun
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.local.session import Session, compare, local_only_sessions
from fedpipe_operator.report import read_record
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import DirectoryStore
from fedpipe_trainer.contract import EvaluateTask, Sample

ACCURACY = {
    "toy": {0: 0.125, 1: 0.75, 2: 0.5},
    "toy-local-only-site-a": {1: 0.25},
    "toy-local-only-site-b": {1: 0.625},
    "toy-local-only-site-c": {1: 0.375},
}
"""By run and round. The second round is worse than the first, so the first is exported."""


def distinct_results(task: Any, folder: Path) -> Any:
    """A trainer whose evaluations give every model a different accuracy and loss, and answers that name the round."""
    if isinstance(task, EvaluateTask):
        accuracy = ACCURACY[task.run.name][task.round]
        answer = Sample(text=f"a text of {task.site}", expected="a", predicted=f"answer {task.round}")
        return an_evaluation(task, metrics={"accuracy": accuracy}, loss=1 - accuracy, examples=(answer,))
    return good_trainer(task, folder)


def work(machine: Machine, session: Session) -> None:
    session.reconcile()
    for name in machine.backend.active_jobs():
        machine.backend.work(name)


def work_until_planned(machine: Machine, session: Session) -> None:
    while session.store.read(names.round_plan(1)) is None:
        work(machine, session)


class Workspace:
    """A folder with the YAML of a run, and the folder of its output."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        run = a_run(**spec)
        bare = run.resource.model_copy(update={"metadata": run.resource.metadata.model_copy(update={"uid": ""})})
        self.folder, self.run, self.runs = folder, Run(bare, run.sites), RunFolder(folder / "runs", bare)
        documents = [json.loads(value.to_json()) for value in (bare, *run.sites)]
        for document in documents:
            document.pop("status")
        (folder / "run.yaml").write_text(yaml.safe_dump_all(documents))

    def execute(self, *, until: str, trainer: Callable[[Any, Path], Any] = distinct_results) -> None:
        """Do what `fedpipe run` does, with a stand-in for the trainers, up to the plan, the first trainings, the end or the comparison."""
        with self.runs.lock():
            machine = Machine(self.runs.path, Run(self.runs.resume(), self.run.sites), trainer)
            session = machine.session(on_status=self.runs.write_status)
            if until in ("plan", "training"):
                work_until_planned(machine, session)
            while until == "training" and session.store.list(names.round_folder(1)) == [names.round_plan(1)]:
                work(machine, session)
            if until in ("end", "comparison"):
                machine.drive({"run": session})
            if until == "comparison":
                baselines = local_only_sessions(session)
                machine.drive(baselines)
                compare(session, baselines)

    def call(self, command: str, *options: str) -> tuple[int, list[str]]:
        """The exit status and the output lines, with white space folded."""
        arguments = [command, str(self.folder), "--output", str(self.folder / "runs"), *options]
        result = CliRunner(env={"COLUMNS": "300"}).invoke(app_for([command]), arguments)
        return result.exit_code, [" ".join(line.split()) for line in result.output.splitlines() if line.strip()]


def plan_with_stand_ins(run: LocalRun, sessions: Mapping[str, Session], until: Callable[[Session], bool]) -> None:
    """As `LocalRun.drive`, with a stand-in for the trainers."""
    del until
    machine = Machine(run.folder.path, sessions["run"].run, distinct_results)
    work_until_planned(machine, machine.session())


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished run with its comparison, whose models all have different results; tests change nothing that others read."""
    workspace = Workspace(tmp_path_factory.mktemp("compared"))
    workspace.execute(until="comparison")
    return workspace


def rows_of(lines: list[str]) -> list[str]:
    """The rows of the comparison table, without the other lines."""
    return [line for line in lines if re.match(r"(base model|site-., local only|federated) ?", line)]


def test_the_comparison_table_lists_all_models_and_marks_the_best(compared: Workspace) -> None:
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
    workspace = Workspace(tmp_path, rounds={"count": 2, "target": {"metric": "loss", "value": 0.01}})
    workspace.execute(until="comparison")

    _, lines = workspace.call("run")

    assert [re.sub(r"[0-9.]+ %", "", line) for line in rows_of(lines)] == [
        "base model, untouched 0 0.875 ",
        "site-a, local only 100 0.750 ",
        "site-b, local only 100 0.375 ",
        "site-c, local only 100 0.625 ",
        "federated 300 0.250  best",
    ]


def test_a_local_only_baseline_that_is_better_than_the_federated_model_is_marked(tmp_path: Path) -> None:
    def better_baseline(task: Any, folder: Path) -> Any:
        if isinstance(task, EvaluateTask) and task.run.name == "toy-local-only-site-b":
            return an_evaluation(task, metrics={"accuracy": 0.875})
        return distinct_results(task, folder)

    workspace = Workspace(tmp_path)
    workspace.execute(until="comparison", trainer=better_baseline)

    assert [line for line in rows_of(workspace.call("run")[1]) if line.endswith("best")] == ["site-b, local only 100 87.5 % best"]


def test_the_samples_in_the_output_and_in_the_report_are_of_the_exported_round(compared: Workspace) -> None:
    _, lines = compared.call("run")
    page = (compared.runs.store / names.REPORT).read_text()

    assert [line for line in lines if "a text of" in line] == [f"✗ a answer 1 a text of site-{site}" for site in "abc"]
    assert "answer 1" in page
    assert "answer 2" not in page


def test_a_finished_run_prints_its_rounds_and_the_location_of_its_results(compared: Workspace) -> None:
    _, lines = compared.call("run", "--no-compare")

    assert [line.split(",")[:2] for line in lines if line.startswith("round ")] == [
        ["round 1: 3/3 updates", " accuracy 75.0 %"],
        ["round 2: 3/3 updates", " accuracy 50.0 %"],
    ]
    assert lines[-3:] == [
        f"{name} {compared.runs.store}/{name}".replace("  ", " ") for name in ("export/adapter", "export/merged", "report.html")
    ]


def test_what_the_spec_leaves_out_of_the_export_is_not_printed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, export={"merged": False})
    workspace.execute(until="end")

    _, lines = workspace.call("run", "--no-compare")

    assert [line.split()[0] for line in lines[-2:]] == ["export/adapter", "report.html"]
    assert not any(line.startswith("export/merged") for line in lines)


def test_without_a_comparison_there_is_no_table(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.execute(until="end")

    status, lines = workspace.call("run", "--no-compare")

    assert status == 0
    assert rows_of(lines) == []
    assert any("After round 1" in line for line in (workspace.runs.store / names.REPORT).read_text().splitlines())


def test_a_failed_run_prints_the_reason_the_folder_of_its_logs_and_what_to_do(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.execute(until="end", trainer=lambda _task, _folder: None)

    status, lines = workspace.call("run")

    assert status == 1
    assert lines[-2].startswith("failed: QuorumOutOfReach: ")
    assert lines[-1] == f"logs: {workspace.runs.path}/jobs; correct the cause, then start over with --fresh"


@pytest.mark.parametrize("option", [("--rounds", "1"), ("--max-steps", "3"), ("--seed", "5")])
def test_an_option_that_changes_the_spec_is_refused_for_a_finished_run(compared: Workspace, option: tuple[str, str]) -> None:
    status, lines = compared.call("run", *option)

    assert status == 1
    assert lines[-1].startswith("OtherSpec: ")


def test_an_edit_of_an_unfinished_run_counts_from_the_next_round(tmp_path: Path) -> None:
    Workspace(tmp_path, training={"learningRate": 0.001}).execute(until="training")
    edited = Workspace(tmp_path, training={"learningRate": 0.002})

    _, lines = edited.call("plan")
    edited.execute(until="end")

    plans = [json.loads((edited.runs.store / names.round_plan(round_)).read_text()) for round_ in (1, 2)]
    assert [plan["learningRate"] for plan in plans] == [0.001, 0.002]
    assert lines[0] == "the spec was edited: steps that are finished, such as a round's plan, keep the earlier values; --fresh starts over"


def test_an_edit_after_plan_counts_at_once_and_keeps_the_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Workspace(tmp_path, training={"learningRate": 0.001})
    before.execute(until="plan")
    measured = {path: path.stat().st_mtime_ns for path in before.runs.store.glob("profile/*/*/result.json")}
    monkeypatch.setattr(LocalRun, "drive", plan_with_stand_ins)

    status, lines = Workspace(tmp_path, training={"learningRate": 0.002}).call("plan")

    assert status == 0
    assert lines[0] == "the spec was edited: round 1, which had not begun, is planned again; the sites' profiles are kept"
    assert json.loads((before.runs.store / names.round_plan(1)).read_text())["learningRate"] == 0.002
    assert {path: path.stat().st_mtime_ns for path in before.runs.store.glob("profile/*/*/result.json")} == measured


def test_a_plan_that_is_refused_for_an_edit_advises_an_option_that_plan_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Workspace(tmp_path).execute(until="plan")
    edited = Workspace(tmp_path, planning={"bits": [8], "ranks": [4], "batchSizes": [2]})

    status, lines = edited.call("plan")

    assert status == 1
    assert lines[-1].startswith("OtherSpec: ")
    assert lines[-1].endswith("start over with --fresh")

    monkeypatch.setattr(LocalRun, "drive", plan_with_stand_ins)
    status, lines = edited.call("plan", "--fresh")

    assert status == 0
    assert lines.count("the base is kept at 8 bits a number, the most that planning.bits allows") == 3


def test_a_second_command_on_an_active_run_is_refused(compared: Workspace) -> None:
    with compared.runs.lock():
        status, lines = compared.call("run")

    assert status == 1
    assert lines[-1].startswith("RunInProgress: ")


def test_plan_prints_the_plan_of_each_site_with_its_reasons_and_trains_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.execute(until="plan")
    before = sorted(workspace.runs.store.rglob("*.json"))

    status, lines = workspace.call("plan")

    assert status == 0
    table = [line.split()[:5] for line in lines if line.startswith("site-") and " " in line]
    assert table == [[f"site-{site}", "16", "2", "1/1", "4"] for site in "abc"]
    assert lines.count("the base is kept at 16 bits a number, the most that planning.bits allows") == 3
    assert any(line.startswith("bits: of each number of the frozen base; batch: samples of a step;") for line in lines)
    assert sum(line.startswith("predicted: ") and line.endswith(" up, 0 B down") for line in lines) == 3
    assert sum("rank 4 in layer" in line for line in lines) == 3
    assert len([line for line in lines if line.startswith("training.learningRate 0.0002: the default: no two rates could be tested")]) == 1
    assert sorted(workspace.runs.store.rglob("*.json")) == before


def test_plan_overrides_rounds_and_steps_as_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalRun, "drive", plan_with_stand_ins)
    workspace = Workspace(tmp_path)

    status, lines = workspace.call("plan", "--rounds", "1", "--max-steps", "1")

    assert status == 0
    assert "training.learningRateSchedule Cosine: a single round has all of the learning rate" in lines
    assert len([line for line in lines if line == "limited by the spec: training.maxSteps is 1"]) == 3


def test_plan_of_a_cluster_s_run_cannot_be_changed_by_options(tmp_path: Path) -> None:
    status, lines = Workspace(tmp_path).call("plan", "-n", "default", "--rounds", "1")

    assert status == 2
    assert any("-n shows the one that a cluster's run has" in line for line in lines)


def test_plan_prints_which_site_is_excluded_and_why(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, sites={"quorum": 0.6})
    small = workspace.run.sites[2].model_copy(deep=True)
    capacity = small.spec.capacity.model_copy(update={"memory": "64Mi"})
    sites = (*workspace.run.sites[:2], small.model_copy(update={"spec": small.spec.model_copy(update={"capacity": capacity})}))
    workspace.run = Run(workspace.run.resource, sites)
    workspace.execute(until="plan")

    _, lines = workspace.call("plan")

    assert [line.split()[0] for line in lines if line.startswith("site-") and " " in line] == ["site-a", "site-b", "site-c"]
    assert "excluded, for the reasons at the end: site-c" in lines
    assert "site-c is excluded" in lines
    assert lines[lines.index("site-c is excluded") + 1].startswith("not even its smallest plan fits: give it ")


def test_plan_of_a_failed_run_prints_the_reason(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.execute(until="end", trainer=lambda _task, _folder: None)

    status, lines = workspace.call("plan")

    assert status == 1
    assert lines[-1].startswith("failed: QuorumOutOfReach: ")


def test_report_of_an_active_run_has_everything_so_far(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.execute(until="plan")

    with workspace.runs.lock():
        status, lines = workspace.call("report")

    assert (status, lines) == (0, [str(workspace.runs.store / "report.html")])
    page = (workspace.runs.store / "report.html").read_text()
    assert "Unfinished" in page
    assert "No round has been evaluated yet." in page


def test_report_shows_what_the_sites_of_a_finished_run_sent(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.execute(until="end")
    record = read_record(workspace.runs.read_only(), DirectoryStore(workspace.runs.store))

    assert record.unreadable == {}
    assert [sorted(updates) for updates in record.updates.values()] == 2 * [["site-a", "site-b", "site-c"]]
    assert sorted(record.profiles) == ["site-a", "site-b", "site-c"]


def test_report_accepts_a_run_that_was_started_with_options_that_changed_its_spec(tmp_path: Path) -> None:
    Workspace(tmp_path, rounds={"count": 1}).execute(until="end")

    status, _ = Workspace(tmp_path).call("report")

    assert status == 0
    assert "Complete" in (tmp_path / "runs/default/toy/store/report.html").read_text()


def test_report_of_a_run_that_was_never_started_is_an_error_and_creates_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)

    status, lines = workspace.call("report")

    assert status == 1
    assert lines == [f"{workspace.runs.path} has no run of this name: start it with fedpipe run, or correct --output"]
    assert not (tmp_path / "runs").exists()

"""The progress of a run in the terminal: plan, step, loss and speed of each site, every round once, and warnings."""

import re
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from fedpipe_operator.api import FineTuneStatus, Reason
from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.cli.display import Display
from fedpipe_operator.rounds import Event
from fedpipe_trainer.contract import ExitCode, Progress

PLANS = (
    {"site": "clinic", "bits": 4, "rank": 8, "adapters": 24, "batchSize": 2, "steps": 70, "memory": 1, "seconds": 1},
    {"site": "hospital", "bits": 16, "rank": 32, "adapters": 48, "batchSize": 16, "steps": 90, "memory": 1, "seconds": 1},
)
ROUNDS = (
    {"round": 1, "updates": "3/3", "metric": 0.412, "seconds": 95.0, "uploadedBytes": 3_145_728, "truncatedEnergy": 0.0123},
    {"round": 2, "updates": "2/3", "metric": 0.507, "seconds": 8.25, "uploadedBytes": 1024, "truncatedEnergy": 0.5},
)


def a_status(rounds: int = 2, plans: int | Sequence[object] = 2, **fields: object) -> FineTuneStatus:
    chosen = PLANS[:plans] if isinstance(plans, int) else plans
    document = {"round": 1, "metric": {"name": "accuracy", "value": 0.5, "round": 2}, "history": ROUNDS[:rounds], "plans": chosen}
    return FineTuneStatus.model_validate(document | fields)


def running(site: str, kind: str = "train", *, step: int = 3, loss: float | None = None, speed: float | None = None) -> JobStatus:
    progress = Progress(phase="train", step=step, steps=90, loss=loss, tokens_per_second=speed)
    return JobStatus(Job(f"{kind}-{site}", TaskKind(kind), site, 2, 0), JobState.RUNNING, 1000.0, progress=progress)


def by_name(*jobs: JobStatus) -> dict[str, JobStatus]:
    return {status.job.name: status for status in jobs}


class Screen:
    """A display and its output, to a log or to a terminal."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.file = StringIO()
        self.display = Display(Console(file=self.file, width=200, force_terminal=terminal, color_system=None, legacy_windows=False))

    def lines(self) -> list[str]:
        """The lines of the output, without terminal codes and with white space folded."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", self.file.getvalue())
        return [" ".join(line.split()) for line in plain.splitlines() if line.strip()]


@pytest.fixture
def log() -> Screen:
    return Screen()


def test_the_line_of_a_profile_names_no_round(log: Screen) -> None:
    profile = JobStatus(Job("profile-clinic", TaskKind.PROFILE, "clinic", 0, 0), JobState.SUCCEEDED, 1000.0)

    with log.display as display:
        display.jobs(by_name(profile))

    assert log.lines() == ["clinic profile: succeeded"]


def test_what_a_finished_profile_began_with_is_not_shown_as_how_far_it_came(log: Screen) -> None:
    profile = JobStatus(Job("profile-clinic", TaskKind.PROFILE, "clinic", 0, 0), JobState.SUCCEEDED, 1000.0)

    with log.display as display:
        display.jobs(by_name(replace(profile, progress=Progress(phase="profile", step=0, steps=3))))

    assert log.lines() == ["clinic profile: succeeded"]


@pytest.fixture
def terminal() -> Screen:
    return Screen(terminal=True)


def test_on_a_terminal_every_site_has_a_line_with_its_plan_step_loss_and_speed(terminal: Screen) -> None:
    with terminal.display as display:
        display.status(a_status(rounds=0))
        display.jobs(by_name(running("hospital", step=41, loss=0.25, speed=1404.4), running("clinic", step=7, loss=1.5, speed=88.0)))

    assert terminal.lines()[-2:] == [
        "clinic 4 bits, rank 8 on 24 weights, batch 2, 70 steps training train 7/90 loss 1.500 88 tokens/s",
        "hospital 16 bits, rank 32 on 48 weights, batch 16, 90 steps training train 41/90 loss 0.250 1404 tokens/s",
    ]


@pytest.mark.parametrize(
    ("left", "line"),
    [(None, "Training: 42 % of the run"), (0, "Training: 42 % of the run"), (125, "Training: 42 % of the run, about 2 min 5 s left")],
)
def test_on_a_terminal_the_last_line_is_how_far_the_run_is(terminal: Screen, left: int | None, line: str) -> None:
    progress = {"stage": "Training", "percentage": 42, "sitesDone": 0, "sitesTotal": 2, "estimatedRemainingSeconds": left}
    with terminal.display as display:
        display.status(a_status(rounds=0, progress=progress))
        display.jobs(by_name(running("clinic")))

    assert terminal.lines()[-1] == line


def test_the_line_of_a_site_shows_its_running_job(terminal: Screen) -> None:
    ended = replace(running("clinic", step=90, speed=88.0), state=JobState.SUCCEEDED, started_at=2000.0)
    current = running("clinic", "evaluate", step=1, speed=300.0)

    with terminal.display as display:
        display.jobs(by_name(current, ended))

    assert [line for line in terminal.lines() if line.startswith("clinic")][-1] == "clinic evaluating train 1/90 300 tokens/s"


def test_the_line_of_an_idle_site_shows_the_job_that_started_last(terminal: Screen) -> None:
    jobs = [
        replace(running("clinic", kind, speed=speed), state=JobState.SUCCEEDED, started_at=started)
        for kind, speed, started in (("train", 2.0, 2000.0), ("evaluate", 3.0, 3000.0), ("profile", 1.0, 1000.0))
    ]

    with terminal.display as display:
        display.jobs(by_name(*jobs))

    assert terminal.lines()[-1] == "clinic succeeded train 3/90 3 tokens/s"


def test_a_job_of_the_run_itself_has_its_own_line(terminal: Screen) -> None:
    aggregation = JobStatus(Job("aggregate-r2", TaskKind.AGGREGATE, "", 2, 0), JobState.RUNNING, 1000.0)

    with terminal.display as display:
        display.jobs(by_name(aggregation, running("clinic", speed=1.0)))

    assert terminal.lines()[-2] == "(run) aggregating"


def test_in_a_log_an_ended_job_has_one_line_with_its_numbers(log: Screen) -> None:
    before = by_name(running("clinic", loss=1.5, speed=88.0), running("hospital", loss=0.25, speed=1404.0))
    ended = before | by_name(replace(before["train-hospital"], state=JobState.SUCCEEDED))

    with log.display as display:
        for jobs in (before, ended, ended):
            display.jobs(jobs)

    assert log.lines() == ["hospital train of round 2: succeeded, train 3/90, loss 0.250, 1404 tokens/s"]


def test_in_a_log_every_stage_begins_with_how_far_the_run_is(log: Screen) -> None:
    stages = [("Profiling", 0, None), ("Profiling", 1, None), ("Training", 4, 125), ("Training", 42, 70), ("Exporting", 97, 15)]
    with log.display as display:
        for stage, percentage, left in stages:
            progress = {"stage": stage, "percentage": percentage, "sitesDone": 0, "sitesTotal": 2, "estimatedRemainingSeconds": left}
            display.status(FineTuneStatus.model_validate({"progress": progress}))

    assert log.lines() == [
        "Profiling: 0 % of the run",
        "Training: 4 % of the run, about 2 min 5 s left",
        "Exporting: 97 % of the run, about 15 s left",
    ]


def test_a_job_that_was_stopped_with_the_command_is_no_failure(log: Screen) -> None:
    stopped = replace(running("clinic"), state=JobState.FAILED, exit_code=ExitCode.TERMINATED, reason="Terminated", message="on request")

    with log.display as display:
        display.jobs(by_name(stopped))

    assert log.lines() == ["clinic train of round 2: stopped with the command; it is taken up again"]


def test_in_a_log_a_failed_job_has_its_reason(log: Screen) -> None:
    failed = replace(running("clinic"), state=JobState.FAILED, reason="Killed", message="exit code 137: nothing in the log", progress=None)

    with log.display as display:
        display.jobs(by_name(failed))

    assert log.lines() == ["clinic train of round 2: failed (Killed: exit code 137: nothing in the log)"]


CLINIC = "clinic plan: 4 bits, rank 8 on 24 weights, batch 2, 70 steps"
HOSPITAL = "hospital plan: 16 bits, rank 32 on 48 weights, batch 16, 90 steps"


def test_a_plan_is_printed_when_it_differs_from_that_of_the_round_before(log: Screen) -> None:
    faster = a_status(rounds=0, round=2, plans=[PLANS[0], PLANS[1] | {"steps": 99}])
    without_hospital = a_status(rounds=0, round=3, plans=PLANS[:1], excluded={"phone": "needs at least 1.07 GiB"})

    for status in (a_status(rounds=0), a_status(rounds=0), faster, without_hospital, without_hospital):
        log.display.status(status)
    log.display.status(faster.model_copy(update={"round": 4}))

    changed = HOSPITAL.replace("90", "99")
    first, second, later = ("plans of round 1:", CLINIC, HOSPITAL), ("plans of round 2:", changed), ("plans of round 4:", changed)
    assert log.lines() == [*first, *second, "phone excluded: needs at least 1.07 GiB", *later]


def test_a_plan_has_the_trained_layers_where_not_all_are_and_what_limits_it(log: Screen) -> None:
    offers = "limited by time: 12 s more a round would buy 3 more steps (predicted progress +4.4 %); 1 GiB more memory would buy 16 bits"
    plans = [
        PLANS[0] | {"layers": 6, "modelLayers": 12, "limitedBy": "Time", "why": [offers, "the top 6 of 12 layers are trained"]},
        PLANS[1] | {"layers": 12, "modelLayers": 12, "limitedBy": "Spec", "why": ["no resource limits it noticeably"]},
    ]

    log.display.status(a_status(rounds=0, plans=plans))

    assert log.lines()[1:] == [
        f"{CLINIC}, top 6 of 12 layers",
        "limited by time: 12 s more a round would buy 3 more steps",
        HOSPITAL,
        "limited by spec: no resource limits it noticeably",
    ]


def test_a_plan_is_printed_again_if_something_else_limits_it_but_not_if_only_its_numbers_changed(log: Screen) -> None:
    for limit, why in (("Time", "12 s more a round"), ("Time", "11 s more a round"), ("Memory", "1 GiB more memory")):
        log.display.status(a_status(rounds=0, plans=[PLANS[0] | {"limitedBy": limit, "why": [f"limited by {limit.lower()}: {why}"]}]))

    plans = [line for line in log.lines() if not line.startswith("plans of round")]
    assert plans == [CLINIC, "limited by time: 12 s more a round", CLINIC, "limited by memory: 1 GiB more memory"]


def test_what_limits_a_plan_is_told_whole(log: Screen) -> None:
    offer = "limited by time: 20 s more a round (by raising rounds.deadline) would buy 6 instead of 4 trained layers, but 30 instead of 37"
    plan = PLANS[1] | {"limitedBy": "Time", "why": [f"{offer} (predicted progress +4.4 %); 25 % more memory would bring less than 1 %"]}

    log.display.status(a_status(rounds=0, plans=[plan]))

    assert log.file.getvalue().splitlines()[-1].strip() == offer


def test_hyperparameters_are_printed_once_and_again_when_they_change(log: Screen) -> None:
    rate = {"name": "training.learningRate", "value": "0.003", "reason": "it has the lowest loss"}
    scaling = {"name": "training.scaling", "value": "RsLoRA", "reason": "[red]from the spec[/]"}
    edited = rate | {"value": "0.01", "reason": "from the spec"}

    for hyperparameters in ([rate, scaling], [rate, scaling], [edited, scaling]):
        log.display.status(a_status(rounds=0, plans=0, hyperparameters=hyperparameters))

    assert log.lines() == [
        "training.learningRate 0.003: it has the lowest loss",
        "training.scaling RsLoRA: [red]from the spec[/]",
        "training.learningRate 0.01: from the spec",
    ]


def test_every_round_is_printed_once_in_order(log: Screen) -> None:
    for rounds in (0, 1, 1, 2, 2):
        log.display.status(a_status(rounds=rounds, plans=0))

    assert log.lines() == [
        "round 1: 3/3 updates, accuracy 41.2 %, 1 min 35 s, 3.00 MiB received, 1.23% energy truncated",
        "round 2: 2/3 updates, accuracy 50.7 %, 8.2 s, 1.00 KiB received, 50.00% energy truncated",
    ]


def test_a_round_without_a_metric_says_so(log: Screen) -> None:
    log.display.status(a_status(rounds=1, plans=0, metric=None))

    assert log.lines()[0].startswith("round 1: 3/3 updates, no metric, ")


def test_why_sites_were_planned_anew_is_printed_with_a_line_for_each(log: Screen) -> None:
    notes = [f"re-planned: {why}" for why in ("a step took 1.3 times as long as predicted", "its memory is now 4.00 GiB")]
    plans = [plan | {"why": ["limited by time", note, "90 steps"]} for plan, note in zip(PLANS, notes, strict=True)]

    log.display.status(a_status(rounds=0, plans=plans))
    log.display.event(Event("Replanned", f"round 2: clinic: {notes[0]}; hospital: {notes[1]}"))

    assert log.lines()[-2:] == [
        "Replanned: clinic: a step took 1.3 times as long as predicted",
        "Replanned: hospital: its memory is now 4.00 GiB",
    ]


def test_other_events_are_printed_if_they_are_warnings(log: Screen) -> None:
    log.display.event(Event("RoundCompleted", "round 1: accuracy 0.4"))
    log.display.event(Event("UpdateRefused", "clinic: NotFinite", warning=True))

    assert log.lines() == ["UpdateRefused: clinic: NotFinite"]


def test_that_sites_have_no_plan_is_printed_with_their_lines_and_not_again(log: Screen) -> None:
    log.display.event(Event(Reason.SITES_LEFT_OUT, "round 1: clinic: too little memory", warning=True))

    assert log.lines() == []


def test_markup_in_the_message_of_a_site_is_printed_as_text(log: Screen) -> None:
    failed = replace(running("clinic"), state=JobState.FAILED, reason="Died", message="[red]boo[/red] [/]")

    log.display.jobs(by_name(failed))

    assert "[red]boo[/red] [/]" in log.lines()[0]


def test_a_long_line_is_not_wrapped_in_a_log(log: Screen) -> None:
    log.display.line("word " * 100)

    assert len(log.lines()) == 1

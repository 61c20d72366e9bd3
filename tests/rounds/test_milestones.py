"""What a run has reached, as it is told: the start of a training once, whenever its sites found a job slot."""

import pytest
from stand_in_runs import a_run

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.api import FineTuneStatus
from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.rounds import Observed
from fedpipe_operator.rounds.actions import Decision, StartTraining
from fedpipe_operator.rounds.milestones import milestones
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.contract import Measured, Outcome, TrainResult

SITES = ("site-a", "site-b", "site-c")
PLAN = RoundPlan(round=1, started_at=0.0, fingerprint="f", weights={}, plans={}, selected=SITES, evaluators=SITES, needed=2)


def told(started: int, action: str = "") -> list[str]:
    """What is told of the training while so many sites have a job, and this one is to be given one."""
    jobs = {site: JobStatus(Job(site, TaskKind.TRAIN, site, 1), JobState.RUNNING, 0.0) for site in SITES[:started]}
    decision = Decision(FineTuneStatus(), (StartTraining(action, 1, 0),) if action else ())
    found = milestones(a_run(), Observed(jobs=jobs, plan=PLAN), decision)
    return [one.message for one in found if "training" in one.message]


@pytest.mark.parametrize(
    ("started", "action", "message"),
    [
        (0, "", []),
        (1, "", []),
        (2, "", []),
        (2, "site-c", ["training of round 1 started at 3 sites"]),
        (3, "", ["training of round 1 started at 3 sites"]),
    ],
)
def test_a_training_is_told_once_all_of_its_sites_have_started(started: int, action: str, message: list[str]) -> None:
    assert told(started, action) == message


def test_where_a_first_site_is_done_before_others_have_a_job_slot_it_says_how_many_have_started() -> None:
    measured = {"run": a_run().ref, "site": "site-a", "round": 1, "attempt": 0, "outcome": Outcome.COMPLETED, "measured": Measured()}
    update = AdmittedUpdate(TrainResult(**measured))
    jobs = {"job": JobStatus(Job("job", TaskKind.TRAIN, "site-a", 1), JobState.SUCCEEDED, 0.0)}

    found = milestones(a_run(), Observed(jobs=jobs, plan=PLAN, updates={"site-a": {0: update}}), Decision(FineTuneStatus()))

    assert [one.message for one in found][-2:] == ["training of round 1 started at 1 of 3 sites", "update received"]

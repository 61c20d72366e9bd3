"""Why a plan was changed, in one word: of each sentence that says it."""

import pytest
from trainer_results import WEIGHTS

from fedpipe_operator.rounds import evidence, replanning
from fedpipe_operator.rounds.replanning import Cause, cause_of
from fedpipe_operator.sites import Correction, Resources, changes, findings
from fedpipe_trainer.contract import Forecast, Plan

BEFORE = Resources(memory_bytes=2**30, up=1e6, down=1e7)
SENTENCES = {
    Cause.OUT_OF_MEMORY: findings(Correction(), Correction(memory_limit=2**30), ran_out_of_memory=True),
    Cause.CACHE_FAILED: findings(Correction(), Correction(cache_problem="it is full")),
    Cause.DEADLINE_EXCEEDED: (*findings(Correction(), Correction(late=1)), *findings(Correction(late=1), Correction(late=2))),
    Cause.IN_TIME_AGAIN: (*findings(Correction(late=1), Correction()), evidence._RESTED),
    Cause.STEPS_OFF: findings(Correction(), Correction(step_seconds=2.0)),
    Cause.LOADING_OFF: findings(Correction(), Correction(other_seconds=2.0)),
    Cause.MEMORY_OFF: (*findings(Correction(), Correction(memory=1.1, peak=2**30)), *findings(Correction(), Correction(memory=0.5))),
    Cause.TRIED_AGAIN: (evidence._RELAXED,),
    Cause.TRANSFERS_OFF: findings(Correction(), Correction(transfers=2.0), BEFORE),
    Cause.RESOURCES_CHANGED: changes(BEFORE, Resources(memory_bytes=2**31, up=2e6, down=2e7)),
    Cause.SITE_CHANGED: (evidence._MOVED,),
    Cause.STALLED: (replanning._STALLED,),
}


def a_plan(*why: str) -> Plan:
    forecast = Forecast(memory_bytes=1, seconds=1, upload_bytes=1, download_bytes=1)
    return Plan(bits=16, batch_size=2, steps=1, ranks=dict.fromkeys(WEIGHTS, 4), forecast=forecast, why=why)


@pytest.mark.parametrize(("cause", "sentence"), [(cause, one) for cause, found in SENTENCES.items() for one in found])
def test_every_finding_has_its_cause(cause: Cause, sentence: str) -> None:
    assert cause_of(a_plan("limited by memory", f"re-planned: {sentence}: 4 instead of 8 bits")) is cause


def test_every_cause_is_of_a_finding() -> None:
    assert {cause for cause, found in SENTENCES.items() if found} == set(Cause)


def test_a_plan_that_was_not_changed_has_no_cause() -> None:
    assert cause_of(a_plan("limited by memory")) is None
    assert cause_of(a_plan()) is None

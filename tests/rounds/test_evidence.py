"""What a round showed changes the next plan: corrected forecasts, less memory after a plan ran out of it, all layers once a run stalls."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from site_profiles import GIB, MPNET, a_site, a_spec, speeds
from stand_in_runs import World, a_run
from stand_in_runs import a_site as a_site_spec
from trainer_results import a_failure, a_profile, an_evaluation, an_update, good_trainer

from fedpipe_operator import names
from fedpipe_operator.api import FineTuneSpec, TrainingSpec
from fedpipe_operator.backend import JobState
from fedpipe_operator.planning import History, limit_after, plan_round
from fedpipe_operator.planning.choices import Choice
from fedpipe_operator.planning.forecast import make_plan, with_found_share
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.rounds.evidence import kept_activations, measurements
from fedpipe_operator.rounds.observed import EvaluationSummary, summarize_commit, summarize_evaluation
from fedpipe_operator.rounds.policies import is_stalled
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation, RoundPlan, SiteEvaluation
from fedpipe_operator.rounds.round_plan import is_outdated
from fedpipe_operator.sites import (
    Correction,
    KeptActivations,
    Measurement,
    Resources,
    basis_of,
    carried_over,
    corrected,
    efficiency_of,
    findings,
    measurement,
    with_lateness,
)
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import (
    Artifact,
    EvaluateTask,
    FailureReason,
    Forecast,
    Measured,
    Outcome,
    Plan,
    ProfileResult,
    ProfileTask,
    RunRef,
    TrainResult,
    TrainTask,
    halved,
)

PLAN = Plan(
    bits=16,
    batch_size=4,
    steps=10,
    ranks={"w": 8},
    forecast=Forecast(memory_bytes=1000, seconds=30.0, step_seconds=20.0, upload_bytes=1, download_bytes=1),
)


def measured(**changes: Any) -> Measurement:
    """Exactly what the plan predicted; `changes` replaces figures."""
    exact = Measurement(step_seconds=20.0, other_seconds=10.0, peak_memory_bytes=1000, steps=10)
    return exact.model_copy(update=changes)


def test_a_forecast_that_held_is_not_corrected() -> None:
    assert corrected(Correction(), PLAN, measured()) == Correction()
    assert findings(Correction(), Correction()) == ()


def test_ratios_of_measured_to_predicted_multiply_the_next_forecast() -> None:
    now = corrected(Correction(step_seconds=2.0), PLAN, measured(step_seconds=60.0, other_seconds=5.0, peak_memory_bytes=1100))

    assert (now.step_seconds, now.other_seconds, now.memory) == (6.0, 0.5, 1.1)
    assert findings(Correction(step_seconds=2.0), now) == (
        "a step took 3 times as long as predicted",
        "loading and evaluation took 0.5 times as long as predicted",
        "training needed 1.07 KiB of memory, 1.1 times what was predicted",
    )


def test_steps_that_found_more_in_the_cache_than_planned_make_no_forecast_faster() -> None:
    """Half of the passes were expected to find their activations there."""
    forecast = PLAN.forecast.model_copy(update={"cached_share": 0.5})
    cached = PLAN.model_copy(update={"cache_activations": True, "lowest_layer": 1, "forecast": forecast})
    as_planned, more = {"cache_hits": 5, "cache_misses": 5}, {"cache_hits": 9, "cache_misses": 1}
    before = Correction(step_seconds=2.0)

    assert corrected(before, cached, measured(step_seconds=10.0, **as_planned)).step_seconds == 1.0
    assert corrected(before, cached, measured(step_seconds=10.0, **more)).step_seconds == 2.0
    assert corrected(before, cached, measured(step_seconds=60.0, **more)).step_seconds == 6.0


def test_steps_that_found_less_in_the_cache_than_planned_make_no_forecast_slower() -> None:
    """All passes were expected to find their activations there, and none did: they had been removed to make room."""
    forecast = PLAN.forecast.model_copy(update={"cached_share": 1.0})
    cached = PLAN.model_copy(update={"cache_activations": True, "lowest_layer": 2, "forecast": forecast})
    removed = {"cache_hits": 0, "cache_misses": 10}

    assert corrected(Correction(), cached, measured(step_seconds=60.0, **removed)).step_seconds == 1.0
    assert corrected(Correction(), cached, measured(step_seconds=10.0, **removed)).step_seconds == 0.5
    assert findings(Correction(), corrected(Correction(), cached, measured(step_seconds=60.0, **removed))) == ()


@pytest.mark.parametrize("found", [0.0, 0.4, 1.0], ids="{:.0%} found".format)
@pytest.mark.parametrize("slower", [1.0, 3.0], ids="{:g} times as slow".format)
def test_steps_are_compared_with_the_forecast_at_the_share_that_the_cache_really_had(found: float, slower: float) -> None:
    site = a_site(has_cache=True, points=speeds(100.0), train_samples=160)
    choice = Choice(bits=16, batch=16, micro_batch=16, checkpointing=False, lowest_layer=20, cached=True)
    ranks = {weight.name: 4 for weight in site.base.weights if weight.layer >= choice.lowest_layer}

    def planned(share: float) -> Plan:
        kept = KeptActivations(bits=16, batch_size=16, micro_batch=16, lowest_layer=20, share=share)
        request = PlanRequest(a_spec(planning={"batchSizes": [16]}), {}, kept={"ward": kept})
        return make_plan(request, site, choice, ranks=ranks, steps=10, why=())

    plan, as_found = planned(0.7), planned(found)
    compared = with_found_share(site, plan, found)

    assert plan.forecast.cached_share == pytest.approx(0.7)
    assert compared.forecast.step_seconds == pytest.approx(as_found.forecast.step_seconds)
    assert compared.forecast.seconds - compared.forecast.step_seconds == pytest.approx(plan.forecast.seconds - plan.forecast.step_seconds)
    hits = round(10 * found)
    needed = measured(step_seconds=slower * as_found.forecast.step_seconds, cache_hits=hits, cache_misses=10 - hits)
    assert corrected(Correction(), compared, needed).step_seconds == pytest.approx(slower)


FULL: Final = "there is no room for more cached activations in /cache: free space on the site's cache volume"


def test_a_cache_that_did_not_work_is_remembered_and_its_steps_make_no_others_slower() -> None:
    cached = PLAN.model_copy(update={"cache_activations": True, "lowest_layer": 1})

    now = corrected(Correction(step_seconds=2.0), cached, measured(step_seconds=60.0, cache_problem=FULL))
    later = corrected(now, PLAN, measured(step_seconds=30.0))

    assert (now.step_seconds, now.cache_problem) == (2.0, FULL)
    assert findings(Correction(step_seconds=2.0), now) == (
        f"its cache did not work, so that the rest of the run is planned without one: {FULL}",
    )
    assert (later.step_seconds, later.cache_problem) == (3.0, FULL)
    assert not any("cache" in one for one in findings(now, later))


def test_a_cache_that_did_not_work_is_remembered_of_a_site_that_took_no_step_or_left_nothing() -> None:
    cached = PLAN.model_copy(update={"cache_activations": True, "lowest_layer": 1})

    now = corrected(Correction(), cached, measured(steps=0, cache_problem=FULL))

    assert now.cache_problem == corrected(now, PLAN, None).cache_problem == FULL


CACHING: Final = PLAN.model_copy(update={"cache_activations": True, "lowest_layer": 2})


@pytest.mark.parametrize(
    ("hits", "misses", "held", "steps", "share"),
    [
        (0, 10, 1.0, 10, 0.1),
        (5, 5, 1.0, 10, 0.55),
        (10, 0, 1.0, 10, 1.0),
        (0, 100, 1.0, 100, 1.0),
        (80, 120, 1.0, 200, 1.0),
        (160, 140, 0.8, 300, 0.8),
        (25, 25, 0.6, 50, 0.55),
    ],
    ids=["first", "half of it was there", "all was there", "one pass", "two passes", "no room for all", "no room for what was computed"],
)
def test_a_cache_holds_what_the_round_found_there_and_what_it_could_write(
    hits: int, misses: int, held: float, steps: int, share: float
) -> None:
    """The site has 400 samples: 100 batches."""
    now = measured(cache_hits=hits, cache_misses=misses, cache_held=held, steps=steps)

    expected = KeptActivations(bits=16, batch_size=4, micro_batch=4, lowest_layer=2, share=share)
    kept = kept_activations(CACHING, now, floor=2, samples=400)
    assert kept is not None
    assert kept.model_copy(update={"share": round(kept.share, 9)}) == expected


def test_nothing_is_counted_on_after_a_site_trained_a_layer_below_or_the_cache_did_not_work() -> None:
    now = measured(cache_hits=5, cache_misses=5)

    assert kept_activations(CACHING, now, floor=2, samples=400) is not None
    assert kept_activations(CACHING, now, floor=1, samples=400) is None
    assert kept_activations(CACHING, now.model_copy(update={"cache_problem": FULL}), floor=2, samples=400) is None
    assert kept_activations(CACHING, measured(), floor=2, samples=400) is None
    smaller_passes = now.model_copy(update={"out_of_memory": True})
    assert kept_activations(CACHING, smaller_passes, floor=2, samples=400) is None
    assert kept_activations(CACHING, now, floor=2, samples=0) is None, "an earlier version of the operator planned the round"


def test_only_the_steps_that_were_taken_are_compared() -> None:
    """Training that the deadline ended after five of ten steps was as fast as predicted."""
    assert corrected(Correction(), PLAN, measured(steps=5, step_seconds=10.0)).step_seconds == 1.0


@pytest.mark.parametrize(("seconds", "factor"), [(1e9, 20.0), (1e-9, 0.05), (0.0, 1.0)])
def test_one_measurement_changes_a_forecast_by_a_bounded_factor(seconds: float, factor: float) -> None:
    assert corrected(Correction(), PLAN, measured(step_seconds=seconds)).step_seconds == factor


def test_after_a_plan_ran_out_of_memory_the_next_must_be_smaller_by_its_own_forecast() -> None:
    first = corrected(Correction(), PLAN, measured(out_of_memory=True, peak_memory_bytes=5000))

    assert (first.memory_limit, first.memory) == (900, 1.0)
    told = findings(Correction(), first, ran_out_of_memory=True)
    assert told == ("the last plan ran out of memory, so that the forecast of training must stay below 900 B",)
    smaller = PLAN.model_copy(update={"forecast": PLAN.forecast.model_copy(update={"memory_bytes": 900})})
    assert corrected(first, smaller, measured(out_of_memory=True)).memory_limit == 810


LINK = Resources(memory_bytes=GIB, up=8e6, down=8e6)
"""A megabyte a second in both directions."""
SENDING = PLAN.model_copy(update={"forecast": PLAN.forecast.model_copy(update={"upload_bytes": 4_000_000, "download_bytes": 1_000_000})})
"""Of its ten seconds beside the steps, the transfers take five."""


def transferred(seconds: float, **changes: Any) -> Measurement:
    """A round of that plan whose transfers took so long."""
    sent = {"other_seconds": 5.0, "transfer_seconds": seconds, "uploaded_bytes": 4_000_000, "downloaded_bytes": 1_000_000}
    return measured(**(sent | changes))


def test_slow_transfers_do_not_lengthen_the_forecast_of_loading_nor_a_slow_load_that_of_transfers() -> None:
    slow_link = corrected(Correction(), SENDING, transferred(15.0), LINK)
    slow_load = corrected(Correction(), SENDING, transferred(5.0, other_seconds=50.0), LINK)

    assert slow_link == Correction(transfers=3.0)
    assert slow_load == Correction(other_seconds=10.0)
    assert findings(Correction(), slow_link, LINK) == (
        "transfers took 3 times as long as predicted, so that uploads are planned with 2.67 Mbit/s",
    )


def test_transfers_are_forecast_from_what_the_round_transferred() -> None:
    """In round 1 there is no global adapter to download, and the link is not faster for that."""
    assert corrected(Correction(), SENDING, transferred(4.0, downloaded_bytes=0), LINK).transfers == 1.0


def test_a_base_model_that_is_downloaded_for_every_task_counts_as_loading() -> None:
    now = corrected(Correction(), SENDING, transferred(15.0, downloaded_bytes=11_000_000), LINK)

    assert (now.transfers, now.other_seconds) == (1.0, pytest.approx(3.0))


def test_transfers_are_never_forecast_to_be_faster_than_the_claim_and_recover_after_a_slow_round() -> None:
    fast = corrected(Correction(), SENDING, transferred(0.05), LINK, fastest=1.0)
    slow = corrected(Correction(), SENDING, transferred(15.0), LINK, fastest=1.0)

    assert fast == Correction()
    assert corrected(slow, SENDING.model_copy(update={"forecast": SENDING.forecast}), transferred(5.0), LINK, fastest=1.0).transfers == 1.0
    assert corrected(Correction(), SENDING, transferred(0.5), LINK).transfers == pytest.approx(0.1)


def test_the_latency_of_small_transfers_says_nothing_of_the_bandwidth() -> None:
    tiny = transferred(0.9, uploaded_bytes=10, downloaded_bytes=10)

    assert corrected(Correction(), PLAN, tiny, LINK).transfers == 1.0


def test_records_of_an_earlier_version_are_read_and_correct_as_they_did() -> None:
    measurement_then = Measurement.model_validate_json('{"stepSeconds": 20, "otherSeconds": 20, "peakMemoryBytes": 1000, "steps": 10}')
    correction_then = Correction.model_validate_json('{"stepSeconds": 1.0, "otherSeconds": 2.0}')

    assert corrected(Correction(), PLAN, measurement_then, LINK) == Correction(other_seconds=2.0)
    assert corrected(Correction(), PLAN, measured(transfer_seconds=10.0)) == Correction(other_seconds=2.0)
    assert correction_then.transfers == 1.0


def test_a_site_that_left_nothing_keeps_its_correction() -> None:
    assert corrected(Correction(memory=1.5), PLAN, None) == Correction(memory=1.5)


def trained_with(micro_batch: int) -> TrainResult:
    """A completed training whose passes of so many samples fitted in memory."""
    return TrainResult(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="a",
        round=1,
        attempt=0,
        outcome=Outcome.COMPLETED,
        measured=Measured(),
        micro_batch_size=micro_batch,
    )


@pytest.mark.parametrize(
    ("planned", "fitted", "too_large"), [(16, 2, 4), (3, 2, 3), (3, 1, 2), (5, 3, 5), (9, 5, 9), (9, 3, 5), (9, 2, 3), (9, 9, 0)]
)
def test_the_smallest_pass_that_ran_out_of_memory_is_one_that_the_trainer_tried(planned: int, fitted: int, too_large: int) -> None:
    """It halves passes of 9 samples to 5, 3, 2 and 1."""
    plan = PLAN.model_copy(update={"batch_size": planned})
    found = measurement(trained_with(fitted), plan)

    assert found.too_large == too_large
    assert corrected(Correction(), plan, found).micro_batch == (fitted if too_large else None)


@pytest.mark.parametrize(("attempt", "other_seconds"), [(0, 3.0), (1, 0.0)], ids=["first attempt", "second, which evaluates nothing"])
def test_a_completed_training_is_measured_by_its_phases_and_a_smaller_micro_batch_means_that_memory_ran_out(
    attempt: int, other_seconds: float
) -> None:
    seconds = {"load": 3.0, "train": 8.0, "transfer": 1.0}
    timed = Measured(seconds=seconds, peak_memory_bytes=77, uploaded_bytes=50, downloaded_bytes=60)
    result = trained_with(2).model_copy(update={"attempt": attempt, "measured": timed, "steps": 9, "resumed_from_step": 4})

    found = measurement(result, PLAN)

    expected = Measurement(
        step_seconds=8.0,
        other_seconds=other_seconds,
        transfer_seconds=1.0,
        uploaded_bytes=50,
        downloaded_bytes=60,
        peak_memory_bytes=77,
        steps=5,
        out_of_memory=True,
        too_large=4,
        efficiency=efficiency_of(result),
    )
    assert found == expected


@pytest.mark.parametrize(("cached", "problem"), [(True, FULL), (False, "")])
def test_the_cache_of_a_training_is_judged_only_if_its_plan_counts_on_it(*, cached: bool, problem: str) -> None:
    result = TrainResult(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="a",
        round=1,
        attempt=1,
        outcome=Outcome.COMPLETED,
        measured=Measured(),
        cache_held=0.25,
        cache_problem=FULL,
    )

    found = measurement(result, PLAN.model_copy(update={"cache_activations": cached}))

    assert (found.cache_held, found.cache_problem) == (0.25 if cached else 1.0, problem)


def test_of_a_site_without_an_update_it_counts_whether_it_ran_out_of_memory_or_of_time() -> None:
    absent = {"a": "OutOfMemory: killed", "b": "Diverged: NaN", "c": "DeadlineExceeded: not done", "d": "DeadlineExceeded: not done"}
    adapter = Artifact(name="adapter", size=9, sha256="a" * 64)
    commit = RoundCommit(
        round=1, method="Exact", adapter=adapter, ranks={}, contributions=(), absent=absent, out_of_memory=("a", "d"), late=("c", "d")
    )
    commit = commit.model_copy(update={"too_large": {"a": 2}})

    found = measurements(summarize_commit(commit))

    assert {site: (one.out_of_memory, one.too_large, one.is_late) for site, one in found.items()} == {
        "a": (True, 2, False),
        "c": (False, 0, True),
        "d": (True, 0, True),
    }


def evaluations(*losses: float | None) -> dict[int, EvaluationSummary]:
    return {at: EvaluationSummary(round=at, loss=loss, metrics={}, sites=()) for at, loss in enumerate(losses)}


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((2.9, 2.5, 2.4), False),
        ((2.9, 2.5, 2.4, 2.3), False),
        ((2.9, 2.4, 2.4, 2.395), True),
        ((2.9, 2.4, 2.5, 2.6), True),
        ((2.9, 2.4, 2.4, 2.3), False),
        ((2.9, 2.9, 2.9, 2.9), True),
        ((2.5, 2.6, 2.7, 2.7), True),
        ((2.9, 2.4, 2.4, 2.395, 2.0), True),
        ((2.9, None, 2.4, 2.4, None, 2.3), False),
        ((None, None, None, None), False),
    ],
)
def test_a_run_stalls_when_two_rounds_bring_less_than_a_fiftieth_of_all_and_stays_so(
    losses: tuple[float | None, ...], *, expected: bool
) -> None:
    assert is_stalled(evaluations(*losses)) is expected


def evaluated_by(*rounds: Mapping[str, float]) -> dict[int, EvaluationSummary]:
    """Evaluations from round 0 on, of each the losses by site; a site has ten targets for each letter of its name."""

    def part(loss: float, targets: int) -> SiteEvaluation:
        return SiteEvaluation(samples=targets, targets=targets, loss=loss)

    def evaluation(round_: int, losses: Mapping[str, float]) -> EvaluationSummary:
        sites = {site: part(loss, 10 * len(site)) for site, loss in losses.items()}
        mean = sum(one.targets * (one.loss or 0.0) for one in sites.values()) / sum(one.targets for one in sites.values())
        return summarize_evaluation(RoundEvaluation(round=round_, finished_at=0.0, loss=mean, sites=sites))

    return {round_: evaluation(round_, losses) for round_, losses in enumerate(rounds)}


PAIRS: Final = ("ab", "cd", "ac", "bd", "ad", "bc")
LEVELS: Final = {"a": 0.5, "b": 1.0, "c": 1.5, "d": 2.0}
"""What the loss of each site tends to."""


def in_pairs(*parts: float) -> dict[int, EvaluationSummary]:
    """Evaluations by two of four sites, which take turns: of each round what the loss is above the level of every site."""
    return evaluated_by(*({site: LEVELS[site] + part for site in PAIRS[at % len(PAIRS)]} for at, part in enumerate(parts)))


@pytest.mark.parametrize("part", [0.0, 1.0])
def test_a_run_that_never_improves_stalls_as_early_with_other_sites_in_each_round_as_with_the_same(part: float) -> None:
    assert not is_stalled(in_pairs(*[part] * 3))
    assert is_stalled(in_pairs(*[part] * 4))


def test_a_run_of_other_sites_in_each_round_stalls_when_each_loses_no_more_than_a_fiftieth_and_not_before() -> None:
    falling = [2.0 * 0.7**at for at in range(10)]
    assert not any(is_stalled(in_pairs(*falling[:end])) for end in range(len(falling) + 1))

    still = [*falling, *[falling[-1]] * 10]
    assert is_stalled(in_pairs(*still))


def test_a_run_stalls_although_an_evaluator_is_missing_in_one_of_the_rounds() -> None:
    whole = {"a": 2.0, "b": 1.0, "hard": 4.0}
    without = {site: loss for site, loss in whole.items() if site != "hard"}

    for missing in range(4):
        assert is_stalled(evaluated_by(*(without if at == missing else whole for at in range(4)))), missing
    lower = ({site: loss * 0.7**at for site, loss in whole.items()} for at in range(4))
    assert not is_stalled(evaluated_by(*lower, {site: loss * 0.7**4 for site, loss in without.items()}))


def test_a_site_that_alone_evaluates_a_round_counts_by_its_own_losses_only() -> None:
    """The sites that are no easier than before have improved by a tenth of all, whatever the mean over the round's sites says."""
    rounds = ({"easy": 0.9, "hard": 3.0}, {"easy": 0.5, "hard": 2.5}, {"easy": 0.4}, {"hard": 2.2}, {"hard": 2.0})

    assert not is_stalled(evaluated_by(*rounds))


def test_evaluations_by_sites_that_never_evaluated_before_say_nothing_about_a_stall() -> None:
    rounds = ({"easy": 0.9}, {"easy": 0.9}, {"hard": 2.1}, {"hard": 2.1})

    assert not is_stalled(evaluated_by(*rounds))


PLANNING: dict[str, Any] = {"bits": [16], "ranks": [4], "batchSizes": [1, 2, 4]}


def plans_of(world: World) -> list[RoundPlan]:
    return [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in (1, 2)]


def trainer_of(**figures: Any) -> Any:
    """The stand-in trainer, whose first round at site-a needs what `figures` says instead of what its plan predicts."""

    def train(task: Any, folder: Path) -> Any:
        if not isinstance(task, TrainTask):
            return good_trainer(task, folder)
        predicted, is_odd = task.plan.forecast, (task.site, task.round) == ("site-a", 1)
        seconds = {
            "train": predicted.step_seconds * (figures.get("slower", 1) if is_odd else 1),
            "load": predicted.seconds - predicted.step_seconds,
        }
        changes = {"micro_batch_size": figures["micro_batch"]} if is_odd and "micro_batch" in figures else {}
        measured = Measured(seconds=seconds, peak_memory_bytes=predicted.memory_bytes)
        return an_update(task, folder, **changes).model_copy(update={"measured": measured})

    return train


def out_of_memory_at_site_a(task: Any, folder: Path) -> Any:
    if isinstance(task, TrainTask) and task.site == "site-a":
        return a_failure(TrainResult, task, FailureReason.OUT_OF_MEMORY, "one sample does not fit in memory")
    return good_trainer(task, folder)


def test_a_site_that_was_slower_than_predicted_trains_on_fewer_samples_in_the_next_round_and_an_event_says_why(tmp_path: Path) -> None:
    rounds = {"count": 2, "deadline": "30s"}
    world = World(a_run(rounds=rounds, planning=PLANNING, training={"epochs": 1000}), tmp_path, trainer_of(slower=4))
    world.settle()

    first, second = plans_of(world)

    samples = {site: [plan.plans[site].steps * plan.plans[site].batch_size for plan in (first, second)] for site in ("site-a", "site-b")}
    assert samples["site-a"][1] < samples["site-a"][0] / 3
    assert samples["site-b"][1] >= samples["site-b"][0]
    assert second.corrections["site-a"].step_seconds == pytest.approx(4)
    messages = [event.message for event in world.events if event.reason == "Replanned"]
    assert [cause(message) for message in messages] == ["round 2: site-a: re-planned: a step took 4 times as long as predicted"]


def test_an_edit_of_the_proximal_term_is_no_reason_why_a_round_needed_other_memory_than_predicted(tmp_path: Path) -> None:
    """The round's peaks are compared with what its own trainings were forecast to need: all took as much as that."""
    corrections, forecasts = [], []
    for number, edited in enumerate(({}, {"proximalMu": 0.1})):
        world = World(a_run(rounds={"count": 2}, planning=PLANNING), tmp_path / str(number), trainer_of())
        world.work_until("train-r1")
        training = TrainingSpec.model_validate(edited)
        world.run = replace(world.run, resource=world.run.resource.model_copy(update={"spec": with_training(world.run.spec, training)}))
        world.settle()
        second = plans_of(world)[1]
        corrections.append({site: one.memory for site, one in second.corrections.items()})
        forecasts.append({site: one.forecast.memory_bytes for site, one in second.plans.items()})

    assert corrections[0] == corrections[1]
    assert all(forecasts[1][site] > without for site, without in forecasts[0].items())


def with_training(spec: FineTuneSpec, training: TrainingSpec) -> FineTuneSpec:
    return spec.model_copy(update={"training": training})


def cause(message: str) -> str:
    """What a re-planning is for; after that the message tells what is planned differently."""
    why, _, changes = message.rpartition(": ")
    assert " instead of " in changes
    return why


def slower_from_round_2(task: Any, folder: Path) -> Any:
    """The stand-in trainer, ten times slower at site-a in mid-run: its deadline ends the training after a few steps."""
    if not isinstance(task, TrainTask):
        return good_trainer(task, folder)
    predicted, plan = task.plan.forecast, task.plan
    factor = 10 if task.site == "site-a" and task.round > 1 else 1
    steps = max(1, plan.steps // factor)
    seconds = {"train": factor * predicted.step_seconds * steps / plan.steps, "load": predicted.seconds - predicted.step_seconds}
    measured = Measured(seconds=seconds, peak_memory_bytes=predicted.memory_bytes)
    return an_update(task, folder, steps=steps, samples=steps * plan.batch_size).model_copy(update={"measured": measured})


def test_a_site_that_becomes_ten_times_slower_in_mid_run_takes_fewer_steps_and_the_run_goes_on(tmp_path: Path) -> None:
    run = a_run(rounds={"count": 3, "deadline": "30s"}, planning=PLANNING, training={"epochs": 1000}, sites={"quorum": 0.6})
    world = World(run, tmp_path, slower_from_round_2)
    world.settle()

    second, third = (required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in (2, 3))

    assert world.conditions()["Complete"] == "RoundsCompleted"
    before, after = second.plans["site-a"], third.plans["site-a"]
    assert after.steps < before.steps / 2, "and of smaller batches"
    assert after.steps * after.batch_size < before.steps * before.batch_size / 8
    assert third.plans["site-b"].steps > 0.9 * second.plans["site-b"].steps
    assert third.corrections["site-a"].step_seconds == pytest.approx(10)
    assert any(one.startswith("re-planned: a step took 10 times as long as predicted") for one in third.plans["site-a"].why)
    messages = [event.message for event in world.events if event.reason == "Replanned"]
    assert [cause(message) for message in messages] == ["round 3: site-a: re-planned: a step took 10 times as long as predicted"]


def test_a_site_that_is_killed_when_it_becomes_too_slow_is_left_out_of_its_round_only(tmp_path: Path) -> None:
    def too_slow(task: Any, folder: Path) -> Any:
        is_lost = isinstance(task, TrainTask) and (task.site, task.round) == ("site-a", 2)
        return None if is_lost else good_trainer(task, folder)

    world = World(a_run(rounds={"count": 3, "attempts": 1}, sites={"quorum": 0.6}), tmp_path, too_slow)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [entry.updates for entry in world.run.resource.status.history] == ["3/3", "2/3", "3/3"]


def drive(world: World, *, stuck: Callable[[str], bool], killed: Callable[[str], bool] = lambda _: False, evaluates: bool = True) -> None:
    """The run to its end, though some jobs are `killed` for want of memory, and others are `stuck` after the evaluation (or before)."""
    while True:
        decision, active = world.reconcile(), world.backend.active_jobs()
        doomed = [name for name in active if killed(name)]
        able = [name for name in active if not stuck(name) and name not in doomed]
        if doomed:
            ended = replace(world.backend.jobs[doomed[0]], state=JobState.FAILED, exit_code=137, reason="OutOfMemory", message="killed")
            world.backend.jobs[doomed[0]] = ended
        elif able:
            world.backend.work(able[0])
        elif active or any(one.state is JobState.PENDING for one in world.backend.jobs.values()):
            for name in active if evaluates else ():
                world.backend.evaluate(name)
            world.now += 601
        elif not decision.actions:
            return


def stored_plans(world: World, rounds: int) -> list[RoundPlan]:
    return [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in range(1, rounds + 1)]


def test_running_out_of_memory_is_remembered_though_the_last_attempt_misses_the_deadline(tmp_path: Path) -> None:
    rounds = {"count": 2, "deadline": "10m", "attempts": 2}
    world = World(a_run(rounds=rounds, planning=PLANNING, sites={"quorum": 0.6}), tmp_path)

    drive(world, killed=lambda name: name.endswith("train-r1-site-a-a0"), stuck=lambda name: name.endswith("train-r1-site-a-a1"))
    _, second = stored_plans(world, 2)

    assert second.corrections["site-a"].memory_limit is not None
    assert second.plans["site-a"].micro_batch <= 2, "at most half of what was killed"


def test_a_site_that_is_still_at_work_at_every_deadline_sits_out_ever_more_rounds_and_is_tried_again(tmp_path: Path) -> None:
    rounds = {"count": 8, "deadline": "2s", "attempts": 1}
    world = World(a_run(rounds=rounds, planning=PLANNING, training={"epochs": 1000}, sites={"quorum": 0.6}), tmp_path)

    drive(world, stuck=lambda name: "train" in name and "site-a" in name and "-r1-" not in name)
    plans = stored_plans(world, 8)

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [entry.updates for entry in world.run.resource.status.history] == ["3/3", "2/3", "2/3", "2/2", "2/3", "2/2", "2/2", "2/3"]
    known = [plan.corrections.get("site-a", Correction()) for plan in plans]
    assert [(one.late, one.rests) for one in known] == [(0, 0), (0, 0), (1, 0), (2, 1), (2, 0), (3, 2), (3, 1), (3, 0)]
    assert known[3].lateness >= 2 / plans[1].plans["site-a"].forecast.seconds
    samples = [plan.plans["site-a"].steps * plan.plans["site-a"].batch_size for plan in plans if "site-a" in plan.plans]
    assert samples[1] > samples[2] > 0, "less to do"
    why = "it missed the deadline 3 times in a row, so it sits out 2 rounds and is tried again in round 8: "
    assert plans[5].excluded["site-a"].startswith(why)
    first, *others = replanned(world)
    assert first.startswith("round 3: site-a: re-planned: it was still at work at the deadline, so that all its seconds count 2 times: ")
    rested = "it was left out of the last round after it had missed the deadline, and is tried again: it takes part"
    assert others == [f"round {round_}: site-a: re-planned: {rested}" for round_ in (5, 8)]


@pytest.mark.parametrize("evaluates", [True, False], ids=["training at the deadline", "still evaluating"])
def test_a_site_that_was_at_work_at_the_deadline_is_late_whatever_it_did(tmp_path: Path, *, evaluates: bool) -> None:
    world = World(a_run(rounds={"count": 2, "deadline": "10m"}, planning=PLANNING, sites={"quorum": 0.6}), tmp_path)

    drive(world, stuck=lambda name: "train-r1" in name and "site-a" in name, evaluates=evaluates)
    _, second = stored_plans(world, 2)

    assert [entry.updates for entry in world.run.resource.status.history] == ["2/3", "3/3"]
    assert second.corrections == {"site-a": Correction(late=1, slower=2.0)}


def test_a_site_that_waited_for_a_node_until_the_deadline_is_not_planned_as_a_slow_one(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 2, "deadline": "10m"}, planning=PLANNING, sites={"quorum": 0.6}), tmp_path)
    world.work_until("train-r1")
    (name,) = (name for name in world.backend.jobs if "train-r1-site-a" in name)
    world.backend.jobs[name] = replace(world.backend.jobs[name], state=JobState.PENDING, message="no node has room")

    drive(world, stuck=lambda name: "train-r1" in name and "site-a" in name)
    _, second = stored_plans(world, 2)

    assert [entry.updates for entry in world.run.resource.status.history] == ["2/3", "3/3"]
    assert second.corrections == {}


def test_an_update_after_a_missed_deadline_is_measured_as_usual() -> None:
    late = corrected(Correction(), PLAN, measured(steps=0, is_late=True), deadline=45.0)
    forecast = PLAN.forecast.model_copy(update={"seconds": 60.0, "step_seconds": 40.0})

    now = corrected(late, PLAN.model_copy(update={"forecast": forecast}), measured(step_seconds=20.0, other_seconds=10.0))

    assert late == Correction(late=1, slower=2.0)
    assert with_lateness(late) == Correction(step_seconds=2.0, other_seconds=2.0, transfers=2.0, late=1, slower=2.0)
    assert now == Correction()
    assert findings(late, now) == ("it was done in time again",)


def test_what_was_not_measured_after_a_missed_deadline_is_as_it_was_before() -> None:
    late = Correction(other_seconds=3.0, late=2)

    now = corrected(late, PLAN, measured(other_seconds=0.0))

    assert (now.other_seconds, now.late) == (3.0, 0)


def test_only_a_round_that_ran_out_of_memory_is_said_to_have() -> None:
    limited = Correction(memory_limit=1200)

    now = corrected(limited, PLAN, measured(peak_memory_bytes=1080))

    assert now.memory_limit == 1296
    assert findings(limited, now) == ("training needed 1.05 KiB of memory, 1.08 times what was predicted",)
    assert findings(Correction(), limited, ran_out_of_memory=True)[0].startswith("the last plan ran out of memory")


def test_the_limit_of_a_plan_that_ran_out_follows_the_memory_of_the_site_in_both_directions() -> None:
    small, large = Resources(memory_bytes=4 * GIB, up=1e8, down=1e9), Resources(memory_bytes=8 * GIB, up=1e8, down=1e9)
    limited = Correction(memory_limit=3 * GIB)

    grown = carried_over(limited, small, large)

    assert grown.memory_limit == 6 * GIB
    assert carried_over(grown, large, small) == limited


def replanned(world: World) -> list[str]:
    return [event.message for event in world.events if event.reason == "Replanned"]


def learns_nothing(task: Any, folder: Path) -> Any:
    """The stand-in trainer, whose evaluations are all the same."""
    return an_evaluation(task, loss=2.0, metrics={"accuracy": 0.1}) if isinstance(task, EvaluateTask) else good_trainer(task, folder)


def test_a_run_that_stalled_stays_deep(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 7}, planning=PLANNING), tmp_path, learns_nothing)
    world.settle()

    stored = [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in range(1, 8)]

    assert [plan.is_stalled for plan in stored] == [False] * 4 + [True] * 3, "after the evaluations of the base and of rounds 1 to 3"


def learns_nothing_and_is_unlike(task: Any, folder: Path) -> Any:
    """The stand-in trainer, whose evaluations stay the same at a site and differ between sites."""
    if not isinstance(task, EvaluateTask):
        return good_trainer(task, folder)
    return an_evaluation(task, loss={"site-a": 1.0, "site-b": 2.0, "site-c": 3.0}[task.site], metrics={"accuracy": 0.1})


def test_a_run_that_trains_some_sites_in_each_round_stalls_as_well(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 7}, planning=PLANNING, sites={"perRound": 2}), tmp_path, learns_nothing_and_is_unlike)
    world.settle()

    stored = [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in range(1, 8)]

    assert len({plan.selected for plan in stored}) > 1
    assert [plan.is_stalled for plan in stored] == [False] * 4 + [True] * 3


@pytest.mark.parametrize("planning", [{}, {"depth": "Full"}, {"mode": "Uniform"}], ids=["of one layer", "all layers", "uniform"])
def test_where_a_stall_changes_no_plan_nothing_is_said(tmp_path: Path, planning: dict[str, Any]) -> None:
    world = World(a_run(rounds={"count": 6}, planning=PLANNING | planning), tmp_path, learns_nothing)
    world.settle()

    assert replanned(world) == []


def test_a_site_whose_claims_change_is_planned_anew_with_a_sentence(tmp_path: Path) -> None:
    world = World(a_run(planning=PLANNING), tmp_path)
    world.work_until("train-r1")
    changed = a_site_spec("site-a", capacity={"memory": "4Gi", "bandwidth": {"up": "10k"}})
    world.run = replace(world.run, sites=(changed, *world.run.sites[1:]))
    world.settle()

    first, second = plans_of(world)

    assert profiles_started(world) == ["site-a-a0", "site-b-a0", "site-c-a0"], "claims need no measurement"
    assert second.resources["site-a"] == Resources(memory_bytes=4 * GIB, up=10e3, down=first.resources["site-a"].down)
    changes = "its memory is now 4.00 GiB instead of 8.00 GiB; its upload bandwidth is now 10 kbit/s instead of 100 Mbit/s"
    assert [cause(message) for message in replanned(world)] == [f"round 2: site-a: re-planned: {changes}"]


def profiles_started(world: World) -> list[str]:
    return [name.partition("profile-")[2] for name in world.backend.started if "profile" in name]


def test_a_profile_that_an_earlier_version_made_is_not_outdated_for_its_cache() -> None:
    site = a_site_spec("site-a", cache={"persistentVolumeClaim": {"claimName": "cache"}})
    basis = basis_of(site)
    profile = ProfileResult.model_construct(outcome=Outcome.COMPLETED, basis=basis)

    assert not is_outdated(profile, site)
    assert not is_outdated(profile.model_copy(update={"basis": basis.model_copy(update={"cache": None})}), site)
    assert is_outdated(profile.model_copy(update={"basis": basis.model_copy(update={"cache": ""})}), site)


OTHER_DATA = {"train": "new.jsonl", "validation": "validation.jsonl", "volume": {"persistentVolumeClaim": {"claimName": "site-a"}}}


CACHE = {"persistentVolumeClaim": {"claimName": "new"}}


@pytest.mark.parametrize(
    "change", [{"nodeSelector": {"pool": "other"}}, {"data": OTHER_DATA}, {"cache": CACHE}], ids=["node pool", "data", "cache"]
)
def test_a_site_whose_pool_data_or_cache_change_in_mid_run_is_profiled_and_planned_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    def other_pool(task: Any, folder: Path) -> Any:
        result = good_trainer(task, folder)
        if not (isinstance(result, ProfileResult) and (task.site, task.attempt) == ("site-a", 1)):
            return result
        points = [point.model_copy(update={"tokens_per_second": point.tokens_per_second / 8}) for point in result.throughput]
        return result.model_copy(update={"throughput": tuple(points)})

    run = a_run(rounds={"count": 3, "deadline": "30s"}, planning=PLANNING, training={"epochs": 1000})
    world = World(run, tmp_path, other_pool)
    world.work_until("train-r1")
    world.run = replace(world.run, sites=(a_site_spec("site-a", **change), *world.run.sites[1:]))
    world.settle()

    first, second, third = stored_plans(world, 3)

    assert profiles_started(world) == ["site-a-a0", "site-b-a0", "site-c-a0", "site-a-a1"]
    assert second.plans["site-a"].steps * second.plans["site-a"].batch_size < first.plans["site-a"].steps * first.plans["site-a"].batch_size
    assert second.profiles["site-a"] == third.profiles["site-a"] == 1
    assert [cause(message) for message in replanned(world)] == [
        "round 2: site-a: re-planned: its EdgeSite has changed, so that it was profiled anew"
    ]


@pytest.mark.parametrize("change", [{"data": OTHER_DATA}, {"capacity": {"memory": "16Gi"}}], ids=["data", "memory"])
def test_a_site_whose_profile_failed_is_profiled_again_when_its_spec_is_corrected(tmp_path: Path, change: dict[str, Any]) -> None:
    def no_such_data(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and (task.site, task.attempt) == ("site-a", 0):
            return a_failure(ProfileResult, task, FailureReason.BAD_DATA, "train.jsonl is not on the volume")
        return good_trainer(task, folder)

    world = World(a_run(rounds={"count": 3}, planning=PLANNING, sites={"quorum": 0.6}), tmp_path, no_such_data)
    world.work_until("train-r2")
    world.run = replace(world.run, sites=(a_site_spec("site-a", **change), *world.run.sites[1:]))
    world.settle()

    _, second, third = stored_plans(world, 3)

    assert second.excluded == {"site-a": "BadData: train.jsonl is not on the volume"}
    assert "site-a" not in second.profiles
    assert profiles_started(world) == ["site-a-a0", "site-b-a0", "site-c-a0", "site-a-a1"], "once more, and not before every round"
    assert third.excluded == {}
    assert replanned(world) == ["round 3: site-a: re-planned: its EdgeSite has changed, so that it was profiled anew: it takes part"]


def with_site_a(world: World, **spec: Any) -> None:
    world.run = replace(world.run, sites=(a_site_spec("site-a", **spec), *(site for site in world.run.sites if site.name != "site-a")))


@pytest.mark.parametrize("fails", [True, False], ids=["that failed", "that succeeded"])
def test_a_profile_of_a_site_that_changed_before_the_first_plan_does_not_count(tmp_path: Path, *, fails: bool) -> None:
    """The natural moment to correct a site is while the others are still being profiled."""

    def no_such_data(task: Any, folder: Path) -> Any:
        if fails and isinstance(task, ProfileTask) and (task.site, task.attempt) == ("site-a", 0):
            return a_failure(ProfileResult, task, FailureReason.BAD_DATA, "train.jsonl is not on the volume")
        return good_trainer(task, folder)

    world = World(a_run(planning=PLANNING, sites={"quorum": 0.6}), tmp_path, no_such_data)
    world.reconcile()
    world.backend.work(next(name for name in world.backend.active_jobs() if "site-a" in name))
    with_site_a(world, data=OTHER_DATA)
    world.settle()

    first, second = stored_plans(world, 2)

    assert sorted(profiles_started(world)) == ["site-a-a0", "site-a-a1", "site-b-a0", "site-c-a0"]
    assert (first.profiles["site-a"], second.profiles["site-a"]) == (1, 1)
    assert first.excluded == second.excluded == {}
    assert replanned(world) == []


def test_a_site_that_changes_back_uses_its_first_profile_again_and_never_another_s(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 4}, planning=PLANNING), tmp_path)
    for round_, change in ((1, {"data": OTHER_DATA}), (2, {}), (3, {"data": OTHER_DATA | {"train": "newest.jsonl"}})):
        world.work_until(f"train-r{round_}")
        with_site_a(world, **change)
    world.settle()

    assert [plan.profiles["site-a"] for plan in stored_plans(world, 4)] == [0, 1, 0, 2]


def test_a_site_that_was_away_for_a_round_is_profiled_again_if_it_comes_back_with_other_data(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 4}, planning=PLANNING, sites={"quorum": 0.6}), tmp_path)
    world.work_until("train-r1")
    with_site_a(world, data=OTHER_DATA)
    world.work_until("train-r2")
    world.run = replace(world.run, sites=tuple(site for site in world.run.sites if site.name != "site-a"))
    world.work_until("train-r3")
    with_site_a(world, data=OTHER_DATA | {"train": "newest.jsonl"})
    world.settle()

    assert [plan.profiles.get("site-a") for plan in stored_plans(world, 4)] == [0, 1, None, 2]


def test_other_data_are_no_reason_to_plan_again_what_ran_out_of_memory(tmp_path: Path) -> None:
    world = World(a_run(planning=PLANNING, sites={"quorum": 0.5}), tmp_path, out_of_memory_at_site_a)
    world.work_until("aggregate-r1")
    with_site_a(world, data=OTHER_DATA)
    world.settle()

    assert stored_plans(world, 2)[1].corrections["site-a"].memory_limit is not None


def test_a_site_whose_new_pool_cannot_be_profiled_is_left_out_with_the_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    def no_such_data(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.attempt:
            return a_failure(ProfileResult, task, FailureReason.BAD_DATA, "new.jsonl is not on the volume")
        return good_trainer(task, folder)

    world = World(a_run(planning=PLANNING, sites={"quorum": 0.6}), tmp_path, no_such_data)
    world.work_until("train-r1")
    world.run = replace(world.run, sites=(a_site_spec("site-a", data=OTHER_DATA), *world.run.sites[1:]))
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert stored_plans(world, 2)[1].excluded == {"site-a": "BadData: new.jsonl is not on the volume"}


def test_what_rounds_showed_of_a_pool_that_a_site_has_left_is_forgotten(tmp_path: Path) -> None:
    world = World(a_run(planning=PLANNING), tmp_path, trainer_of(slower=4))
    world.work_until("aggregate-r1")
    world.run = replace(world.run, sites=(a_site_spec("site-a", nodeSelector={"pool": "other"}), *world.run.sites[1:]))
    world.settle()

    assert "site-a" not in stored_plans(world, 2)[1].corrections


def profiled_out_of_memory(task: Any, folder: Path) -> Any:
    """A trainer whose profile of site-a did not fit into the claimed memory at 16 bits; its node has eight times as much."""
    if isinstance(task, ProfileTask) and task.site == "site-a":
        at_8_bits = a_profile(task.model_copy(update={"bits": (8,)}))
        return at_8_bits.model_copy(update={"out_of_memory": {16: 8 * GIB}, "device_memory_bytes": 64 * GIB})
    return good_trainer(task, folder)


def test_a_claim_that_is_raised_in_mid_run_makes_bits_possible_that_ran_out_of_memory_in_the_profile(tmp_path: Path) -> None:
    planning = {"bits": [8, 16], "ranks": [4], "batchSizes": [2]}
    world = World(a_run(planning=planning), tmp_path, profiled_out_of_memory)
    world.work_until("train-r1")
    grown = a_site_spec("site-a", capacity={"memory": "16Gi"})
    world.run = replace(world.run, sites=(grown, *world.run.sites[1:]))
    world.settle()

    assert [plan.plans["site-a"].bits for plan in plans_of(world)] == [8, 16]
    found = "its memory is now 16.0 GiB instead of 8.00 GiB: 16 instead of 8 bits"
    assert replanned(world) == [f"round 2: site-a: re-planned: {found}"]


def test_a_site_that_got_more_memory_is_no_longer_limited_by_a_plan_that_ran_out_of_the_old(tmp_path: Path) -> None:
    world = World(a_run(planning=PLANNING, sites={"quorum": 0.5}), tmp_path, out_of_memory_at_site_a)
    world.work_until("train-r2")
    assert plans_of(world)[1].corrections["site-a"].memory_limit is not None
    before = plans_of(world)[1]

    grown = Resources(memory_bytes=64 * GIB, up=100e6, down=1e9)

    limit = before.corrections["site-a"].memory_limit
    assert limit is not None
    assert carried_over(before.corrections["site-a"], before.resources["site-a"], grown).memory_limit == 8 * limit
    assert carried_over(before.corrections["site-a"], before.resources["site-a"], before.resources["site-a"]).memory_limit == limit


def test_a_site_whose_memory_ran_out_gets_a_smaller_plan_and_never_the_same_again() -> None:
    site, spec = a_site(memory_bytes=6 * GIB), a_spec(planning={"bits": [16], "ranks": [8], "batchSizes": [1, 2, 4, 8, 16]})
    plan, correction, seen = plan_round(spec, {"ward": site}, {}).plans.plans["ward"], Correction(), []

    for round_ in (2, 3, 4):
        seen.append(plan.forecast.memory_bytes)
        ran_out = Measurement(step_seconds=0, other_seconds=0, peak_memory_bytes=0, steps=0, out_of_memory=True)
        correction = corrected(correction, plan, ran_out)
        plan = plan_round(spec, {"ward": site}, {}, History(round_, corrections={"ward": correction})).plans.plans["ward"]
        assert plan.forecast.memory_bytes <= 0.9 * seen[-1]


@pytest.mark.parametrize("peak", [0.5, 0.85, 1.0, 1.3], ids="a peak of {} of the forecast".format)
def test_a_plan_that_ran_out_of_memory_is_not_made_again_whatever_the_next_one_needs(peak: float) -> None:
    """Forecasts are corrected by what the smaller plan needed; that of the plan that did not fit as well."""
    site, spec = a_site(memory_bytes=6 * GIB), a_spec(planning={"bits": [16], "ranks": [8], "batchSizes": [1, 2, 4, 8, 16]})

    def planned(round_: int, correction: Correction) -> Plan:
        return plan_round(spec, {"ward": site}, {}, History(round_, corrections={"ward": correction})).plans.plans["ward"]

    first = planned(1, Correction())
    ran_out = Measurement(step_seconds=0, other_seconds=0, peak_memory_bytes=0, steps=0, out_of_memory=True)
    correction = corrected(Correction(), first, ran_out)
    for round_ in (2, 3, 4):
        plan = planned(round_, correction)
        assert size(plan) != size(first)
        needed = Measurement(
            step_seconds=plan.forecast.step_seconds,
            other_seconds=plan.forecast.seconds - plan.forecast.step_seconds,
            peak_memory_bytes=int(peak * plan.forecast.memory_bytes),
            steps=plan.steps,
        )
        correction = corrected(correction, plan, needed)


TIGHT: Final[dict[str, Any]] = {"base": MPNET, "memory_bytes": 2 * GIB, "longest_tokens": 64, "mean_tokens": 50.0}
"""Most of its memory is the base: a pass of half as many samples brings the forecast down by less than a tenth."""


def tight_spec(**planning: Any) -> FineTuneSpec:
    return a_spec(task={"type": "CausalLM", "prompt": "{a}", "response": "{b}", "maxLength": 64}, planning={"bits": [16]} | planning)


class MeasuredRounds:
    """A site that is planned round by round with what `limit_after` says of the last plan; `tried` are its plans."""

    def __init__(self, spec: FineTuneSpec, **site: Any) -> None:
        self.spec, self.site, self.correction = spec, a_site(**(site or TIGHT)), Correction()
        self.tried: list[Plan] = []

    def plan(self) -> Plan | None:
        history = History(len(self.tried) + 1, corrections={"ward": self.correction})
        made = plan_round(self.spec, {"ward": self.site}, {}, history).plans
        self.reason = made.excluded.get("ward", "")
        if (plan := made.plans.get("ward")) is not None:
            self.tried.append(plan)
        return plan

    def ran_out(self, plan: Plan, too_large: int, *, trained: bool) -> None:
        request = PlanRequest(self.spec, {}, corrections={"ward": self.correction})
        limit = limit_after(request, self.site, plan, too_large)
        needed = measured(steps=plan.steps if trained else 0, out_of_memory=True, too_large=too_large)
        self.correction = corrected(self.correction, plan, needed, memory_limit=limit)


@pytest.mark.parametrize("bits", [[16], [4, 16]])
def test_a_site_that_trained_with_smaller_passes_than_planned_is_never_left_out_nor_moved_to_fewer_bits(bits: list[int]) -> None:
    """Each round is done after one halving, so what is planned next needs at most what has just fitted."""
    rounds = MeasuredRounds(tight_spec(bits=bits))
    for _ in range(4):
        plan = rounds.plan()
        assert plan is not None, rounds.reason
        if plan.micro_batch == 1:
            break
        rounds.ran_out(plan, plan.micro_batch, trained=True)

    assert {plan.bits for plan in rounds.tried} == {16}
    assert len({str(size(plan)) for plan in rounds.tried}) == len(rounds.tried), "never the same twice"
    needs = [plan.forecast.memory_bytes for plan in rounds.tried]
    assert needs == sorted(needs, reverse=True)
    assert any(later > 0.9 * earlier for earlier, later in pairwise(needs)), "the case in which a tenth less would be too little"


@pytest.mark.parametrize("length", [128, 1024])
@pytest.mark.parametrize("samples", [3, 5, 9])
def test_a_plan_whose_passes_are_of_an_odd_number_of_samples_is_not_made_again(samples: int, length: int) -> None:
    """The site has no more samples than that, and its passes were halved once."""
    task = {"type": "CausalLM", "prompt": "{a}", "response": "{b}", "maxLength": length}
    spec = a_spec(task=task, planning={"bits": [16], "batchSizes": [16]}, rounds={"deadline": "10h"})
    rounds = MeasuredRounds(spec, train_samples=samples, longest_tokens=length, mean_tokens=length / 2, memory_bytes=200 * GIB)
    first = rounds.plan()
    assert first is not None
    rounds.ran_out(first, measurement(trained_with(halved(samples)), first).too_large, trained=True)

    second = rounds.plan()

    assert second is not None, rounds.reason
    assert first.micro_batch == samples
    assert rounds.correction.memory_limit is not None
    assert second.forecast.memory_bytes <= rounds.correction.memory_limit < first.forecast.memory_bytes


def test_passes_that_fitted_are_planned_though_batch_sizes_do_not_name_them() -> None:
    rounds = MeasuredRounds(tight_spec(batchSizes=[16], ranks=[32]))
    first = rounds.plan()
    assert first is not None
    rounds.ran_out(first, 4, trained=True)

    second = rounds.plan()

    assert second is not None, rounds.reason
    assert (first.micro_batch, second.micro_batch, second.batch_size) == (16, 2, 16)


def test_after_kills_smaller_plans_are_tried_down_to_the_smallest_before_a_site_is_left_out() -> None:
    """The kernel kills every plan, three attempts each: with the plan's passes, a half and a quarter of them."""
    rounds = MeasuredRounds(tight_spec())
    while (plan := rounds.plan()) is not None and len(rounds.tried) < 40:
        rounds.ran_out(plan, halved(plan.micro_batch, 2), trained=False)

    sizes, needs = [str(size(plan)) for plan in rounds.tried], [plan.forecast.memory_bytes for plan in rounds.tried]
    assert len(set(sizes)) == len(sizes), "never the same twice"
    assert needs == sorted(needs, reverse=True)
    last = rounds.tried[-1]
    assert (last.micro_batch, sum(rank > 0 for rank in last.ranks.values())) == (1, 1), "one adapter, in passes of one sample"
    assert "raise capacity.memory of its EdgeSite to" in rounds.reason
    assert len(rounds.tried) < 15, "it does not try for ever"


def test_a_site_that_the_kernel_kills_three_times_is_planned_with_the_passes_that_were_not_tried(tmp_path: Path) -> None:
    planning = {"bits": [16], "ranks": [4], "batchSizes": [1, 2, 4, 8, 16]}
    run = a_run(rounds={"count": 2, "attempts": 3}, planning=planning, sites={"quorum": 0.5})
    world = World(run, tmp_path)

    drive(world, stuck=lambda _: False, killed=lambda name: "train-r1-site-a" in name)
    first, second = stored_plans(world, 2)

    assert [entry.updates for entry in world.run.resource.status.history] == ["2/3", "3/3"]
    assert first.plans["site-a"].micro_batch == 15, "all samples of a step: two batches of the site's 30"
    assert second.plans["site-a"].micro_batch < 4, "passes of 15, 8 and 4 were killed"
    assert second.corrections["site-a"].micro_batch == 2
    assert second.plans["site-a"].forecast.memory_bytes > 0.9 * first.plans["site-a"].forecast.memory_bytes


def size(plan: Plan) -> tuple[Any, ...]:
    """What a plan's memory depends on."""
    return plan.bits, plan.micro_batch, plan.lowest_layer, plan.gradient_checkpointing, sorted(plan.ranks.items())


def test_a_site_that_nothing_smaller_fits_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    planning = PLANNING | {"batchSizes": [1]}
    world = World(a_run(rounds={"count": 3}, planning=planning, sites={"quorum": 0.5}), tmp_path, out_of_memory_at_site_a)
    world.settle()
    first, second, third = stored_plans(world, 3)

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert elements(second.plans["site-a"]) < elements(first.plans["site-a"]), "passes of one sample ran out: a smaller adapter is tried"
    assert set(third.excluded) == {"site-a"}
    assert third.excluded["site-a"].startswith("not even its smallest plan fits: after a plan of it ran out of memory")


def elements(plan: Plan) -> int:
    return sum(plan.ranks.values())


def cached_from_round_to_round(task: Any, folder: Path) -> Any:
    """All adapters are in the uppermost of three layers; the first round finds nothing in the caches, the next ones everything."""
    result = good_trainer(task, folder)
    if isinstance(result, ProfileResult) and result.base is not None:
        weights = tuple(weight.model_copy(update={"layer": 2}) for weight in result.base.weights)
        slow = {"tokens_per_second": 100.0, "evaluate_tokens_per_second": 300.0}
        points = tuple(point.model_copy(update=slow) for point in result.throughput)
        return result.model_copy(update={"base": result.base.model_copy(update={"layers": 3, "weights": weights}), "throughput": points})
    if isinstance(result, TrainResult):
        return result.model_copy(update={"cache_hits" if task.round > 1 else "cache_misses": task.plan.steps})
    return result


def test_the_cache_of_a_site_that_takes_no_part_in_a_round_keeps_what_it_holds(tmp_path: Path) -> None:
    """One of two sites trains in each round; the second one's training finds what an earlier round cached."""
    fleet = [a_site_spec(name, cache={"persistentVolumeClaim": {"claimName": f"{name}-cache"}}) for name in ("site-a", "site-b")]
    sites = {"perRound": 1, "quorum": 0.5}
    run = a_run(fleet, rounds={"count": 12, "deadline": "10m"}, planning=PLANNING, training={"maxSteps": 10}, sites=sites)
    world = World(run, tmp_path, cached_from_round_to_round)
    world.settle()

    plans = [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in range(1, 13)]
    trained = {site: [plan.round for plan in plans if plan.selected == (site,)] for site in ("site-a", "site-b")}
    waits = [(site, later) for site, rounds in trained.items() for earlier, later in pairwise(rounds) if later > earlier + 1]
    assert waits
    for site, round_ in waits:
        assert plans[round_ - 1].kept[site].share > 0
        assert plans[round_ - 1].plans[site].forecast.cached_share > 0


def test_a_site_whose_cache_lost_what_it_held_is_not_planned_as_a_slow_one(tmp_path: Path) -> None:
    """Other runs made room on the volume after round 1: the steps of round 2 compute what they were to find."""

    def evicted_in_round_2(task: Any, folder: Path) -> Any:
        result = cached_from_round_to_round(task, folder)
        if not isinstance(result, TrainResult):
            return result
        # A third of a step is its forward pass, two thirds of which are of the lower layers; of the rest a third is left.
        predicted, is_lost = task.plan.forecast, task.round == 2
        computed = predicted.step_seconds * (5 / (5 - 2 * predicted.cached_share) if is_lost else 1)
        seconds = {"train": computed, "load": predicted.seconds - predicted.step_seconds}
        needed = Measured(seconds=seconds, peak_memory_bytes=predicted.memory_bytes)
        counts = {"cache_hits": 0, "cache_misses": task.plan.steps} if is_lost else {}
        return result.model_copy(update={**counts, "measured": needed})

    fleet = [a_site_spec(name, cache={"persistentVolumeClaim": {"claimName": f"{name}-cache"}}) for name in ("site-a", "site-b")]
    run = a_run(fleet, rounds={"count": 3, "deadline": "10m"}, planning=PLANNING, training={"maxSteps": 10})
    world = World(run, tmp_path, evicted_in_round_2)
    world.settle()

    _, second, third = stored_plans(world, 3)
    assert second.plans["site-a"].forecast.cached_share > 0
    assert third.corrections.get("site-a", Correction()).step_seconds == pytest.approx(1.0)


def test_what_a_round_has_cached_is_counted_on_in_the_next_one(tmp_path: Path) -> None:
    """In the first round a site takes 10 of its 25 batches, and caches them: the second one's steps are planned as so much faster."""
    fleet = [a_site_spec(name, cache={"persistentVolumeClaim": {"claimName": f"{name}-cache"}}) for name in ("site-a", "site-b")]
    run = a_run(fleet, rounds={"count": 3, "deadline": "10m"}, planning=PLANNING, training={"maxSteps": 10})
    world = World(run, tmp_path, cached_from_round_to_round)
    world.settle()

    first, second = (plan.plans["site-a"] for plan in plans_of(world))
    assert first.cache_activations
    assert second.cache_activations
    assert second.forecast.step_seconds < first.forecast.step_seconds
    assert not any("cache holds" in reason for reason in first.why)
    assert (first.steps, first.batch_size) == (10, 4)
    assert any("the site's cache holds 40.0 % of their output" in reason for reason in second.why)

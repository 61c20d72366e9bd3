"""The hyperparameters that a spec leaves out: how the learning rate follows from the sites' tests, and the reason for each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_profiles import MPNET, a_site, a_spec

from fedpipe_operator.api import LearningRateSchedule
from fedpipe_operator.planning import FROM_SPEC, LearningRate, choose_learning_rate, hyperparameters, learning_rate_share, range_test
from fedpipe_operator.planning.hyperparameters import DEFAULT_LEARNING_RATE, LEARNING_RATES, RANGE_TEST_STEPS, combined_changes, share_at
from fedpipe_trainer.contract import Forecast, Hyperparameters, Plan, RangeTestResult, RateLoss

FORECAST = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
DIVERGED = None
CHOSEN = LearningRate(1e-3, "why")
AS_FIT = "passes a round: the steps that fit into it at each site, up to 3 passes"
NOT_COMPARED = "the default: no two rates could be tested at enough of the sites; write training.learningRate"


def losses_of(losses: dict[float, float | None], *, before: float = 2.0, samples: int = 64) -> RangeTestResult:
    """A site's test: its loss by rate."""
    rates = tuple(RateLoss(learning_rate=rate, loss=losses[rate]) for rate in sorted(losses))
    return RangeTestResult(samples=samples, loss_before=before, rates=rates)


FAILED = RangeTestResult(problem="no learning rate was tested: out of memory")


# --- the learning rate


def choice(sites: Mapping[str, RangeTestResult | None]) -> LearningRate:
    """The choice for rounds that are as short as the test."""
    return choose_learning_rate(sites, RANGE_TEST_STEPS)


def test_the_rate_that_lowers_the_loss_most_is_chosen_and_the_reason_names_the_others() -> None:
    chosen = choice({"a": losses_of({3e-4: 1.9, 1e-3: 1.7, 3e-3: 1.5, 1e-2: DIVERGED}), "b": None})

    assert chosen.value == 3e-3
    assert chosen.reason == (
        "0.003 is the best of 4 rates: validation loss -25.0 % after 8 steps at 1 of 2 sites "
        "(0.0003: -5.0 %, 0.001: -15.0 %, 0.01: diverged)"
    )


def test_one_site_that_claims_many_samples_does_not_choose_a_rate_at_which_the_others_diverge() -> None:
    honest = {f"ward-{index}": losses_of({1e-3: 1.7, 3e-3: 1.5, 3e-2: DIVERGED}) for index in range(3)}
    liar = losses_of({1e-3: 1.99, 3e-3: 1.99, 3e-2: 0.0}, samples=1000)

    assert choice(honest | {"liar": liar}).value == 3e-3


@pytest.mark.parametrize(("steps", "value"), [(1, 1e-2), (8, 1e-2), (9, 9e-3), (32, 5e-3), (72, 3e-3), (800, 1e-3), (10**6, 3e-5)])
def test_the_rate_falls_with_the_root_of_the_steps_of_a_round_that_is_longer_than_the_test(steps: int, value: float) -> None:
    sites = {"a": losses_of({3e-3: 1.5, 1e-2: 1.4, 3e-2: 1.6})}

    assert choose_learning_rate(sites, steps).value == value


def test_the_reason_says_that_the_rate_was_lowered() -> None:
    chosen = choose_learning_rate({"a": losses_of({3e-3: 1.5, 1e-2: 1.4})}, 32)

    assert chosen.reason.endswith("(0.003: -25.0 %); times √(8/32), since a round has up to 32 steps")


@pytest.mark.parametrize(("best", "steps", "value"), [(3e-4, 72, 1e-4), (3e-4, 18, 2e-4), (3e-2, 72, 1e-2), (3e-4, 7200, 1e-5)])
def test_a_lowered_rate_has_one_digit_and_is_never_0(best: float, steps: int, value: float) -> None:
    assert choose_learning_rate({"a": losses_of({best: 1.0, 1e-3: 1.5})}, steps).value == value


def test_of_rates_that_are_nearly_equal_the_smallest_is_chosen_because_a_short_test_flatters_large_ones() -> None:
    chosen = choice({"a": losses_of({1e-3: 1.9, 3e-3: 1.772, 1e-2: 1.760, 3e-2: 1.781})})

    assert chosen.value == 3e-3
    assert chosen.reason.startswith(
        "0.003 is the smallest rate with at least 90 % of the best gain (of 4 rates): validation loss -11.4 % after 8 steps at 1 of 1"
    )


def test_how_near_a_rate_is_to_the_best_depends_on_what_there_is_to_gain() -> None:
    """Eight steps of a language model that has nearly converged bring less than 1 %, and next to nothing at a small rate."""
    chosen = choice({"a": losses_of({3e-5: 2.0005, 1e-4: 1.999, 3e-4: 1.9975, 1e-3: 1.985, 3e-3: 2.1})})

    assert chosen.value == 1e-3
    assert chosen.reason == (
        "0.001 is the best of 5 rates: validation loss -0.75 % after 8 steps at 1 of 1 sites "
        "(3e-05: +0.03 %, 0.0001: -0.05 %, 0.0003: -0.12 %, 0.003: +5.0 %)"
    )


def test_in_every_measured_case_the_rule_chooses_the_rate_with_the_best_final_quality() -> None:
    stored = json.loads((Path(__file__).parents[2] / "benchmarks" / "learning_rate.json").read_text())
    cases = [key.removesuffix(": range test") for key in stored if key.endswith(": range test")]
    tests = {
        case: {site: RangeTestResult.model_validate(test) for site, test in stored[f"{case}: range test"]["sites"].items()}
        for case in cases
    }

    best = {case: max(LEARNING_RATES, key=lambda rate: stored.get(f"{case}: {rate:g}", {}).get("accuracy", 0.0)) for case in cases}

    assert {case: choice(tests[case]).value for case in cases} == best == dict.fromkeys(cases, 3e-3)


@pytest.mark.parametrize("steps", [8, 100])
def test_of_equal_rates_the_smaller_is_chosen(steps: int) -> None:
    sites = {"a": losses_of({3e-3: 1.5, 1e-2: 1.5})}

    assert choose_learning_rate(sites, steps).value <= 3e-3


def test_sites_count_by_their_validation_samples() -> None:
    slow, fast = losses_of({1e-3: 1.0, 3e-3: 1.2}, samples=60), losses_of({1e-3: 1.4, 3e-3: 1.0}, samples=20)

    assert choice({"a": slow, "b": fast}).value == 1e-3
    assert combined_changes({"a": slow, "b": fast}) == pytest.approx({1e-3: -0.45, 3e-3: -0.425})


def test_a_loss_counts_relative_to_the_loss_before_at_the_same_site() -> None:
    hard, easy = losses_of({1e-3: 4.0, 3e-3: 3.8}, before=4.0), losses_of({1e-3: 0.2, 3e-3: 0.4}, before=1.0)

    assert choice({"hard": hard, "easy": easy}).value == 1e-3


def test_a_rate_that_too_few_tried_does_not_count() -> None:
    in_time = losses_of({3e-4: 1.9, 1e-3: 1.8, 3e-3: 1.7}, samples=30)
    in_haste = losses_of({3e-4: 1.9, 1e-3: 1.8}, samples=60)

    assert choice({"a": in_time, "b": in_haste}).value == 1e-3
    assert choice({"a": in_time, "b": in_haste.model_copy(update={"samples": 30})}).value == 3e-3


def test_a_site_that_stopped_because_its_loss_got_worse_counts_with_that_loss_beyond() -> None:
    bold, careful = losses_of({1e-3: 1.8, 3e-3: 1.6, 1e-2: 1.5}), losses_of({1e-3: 1.0, 3e-3: 1.4})

    assert combined_changes({"a": bold, "b": careful}) == pytest.approx({1e-3: -0.3, 3e-3: -0.25, 1e-2: -0.275})
    assert choice({"a": bold, "b": careful}).value == 1e-3


def test_a_site_without_a_test_or_with_a_failed_one_has_no_say() -> None:
    votes = {"a": losses_of({1e-3: 1.5, 3e-3: 1.2}), "b": FAILED, "c": None}

    assert choice(votes).value == 3e-3
    assert "at 1 of 3 sites" in choice(votes).reason


@pytest.mark.parametrize(
    ("sites", "why"),
    [
        ({"a": FAILED, "b": None}, "the default: too few sites could compare rates; a: no learning rate was tested: out of memory"),
        ({"a": None}, NOT_COMPARED),
        ({"a": losses_of({1e-3: 1.0})}, NOT_COMPARED),
        (
            {"a": losses_of({1e-3: 1.0}, samples=0)},
            NOT_COMPARED,
        ),
    ],
)
def test_where_nothing_can_be_compared_the_default_stays_and_the_reason_says_so(sites: Any, why: str) -> None:
    assert choice(sites) == LearningRate(DEFAULT_LEARNING_RATE, why)


ADVICE = "check the data, or write training.learningRate"


@pytest.mark.parametrize(
    ("losses", "value", "reason"),
    [
        (
            {3e-4: 2.0, 1e-3: 1.999, 3e-3: 2.1},
            DEFAULT_LEARNING_RATE,
            (
                "0.0002: none of 3 rates lowered the validation loss by more than 0.1 % after 8 steps at 1 of 1 sites "
                f"(0.0003: +0.00 %, 0.001: -0.05 %, 0.003: +5.0 %): the default is taken; {ADVICE}"
            ),
        ),
        (
            {3e-5: 1.9999, 1e-4: 2.001, 3e-4: 2.02},
            1e-4,
            (
                "0.0001: none of 3 rates lowered the validation loss by more than 0.1 % after 8 steps at 1 of 1 sites "
                f"(3e-05: +0.00 %, 0.0001: +0.05 %, 0.0003: +1.0 %): the largest that did not raise it by more either is taken; {ADVICE}"
            ),
        ),
        (
            {3e-5: 2.02, 1e-4: 2.1, 3e-4: DIVERGED},
            3e-5,
            (
                "3e-05: none of 3 rates lowered the validation loss after 8 steps at 1 of 1 sites "
                f"(3e-05: +1.0 %, 0.0001: +5.0 %, 0.0003: diverged): the one that raised it least is taken; {ADVICE}"
            ),
        ),
        (
            dict.fromkeys(LEARNING_RATES, DIVERGED),
            3e-5,
            f"3e-05: validation loss diverged at all of 7 rates after 8 steps at 1 of 1 sites: the smallest is taken; {ADVICE}",
        ),
    ],
)
def test_where_no_rate_lowers_the_loss_a_careful_one_is_taken_and_the_reason_says_so(
    losses: dict[float, float | None], value: float, reason: str
) -> None:
    assert choice({"a": losses_of(losses)}) == LearningRate(value, reason)


def test_the_default_is_not_lowered_for_longer_rounds_but_a_rate_that_was_tested_is() -> None:
    nothing_gained, harmful = losses_of({3e-4: 2.0, 1e-3: 2.0}), losses_of({3e-5: 2.1, 1e-4: 2.2})

    assert choose_learning_rate({"a": nothing_gained}, 800).value == DEFAULT_LEARNING_RATE
    assert choose_learning_rate({"a": harmful}, 800).value == 3e-6


def test_a_site_whose_loss_diverged_counts_as_diverged_at_all_larger_rates() -> None:
    """It had no time to try them, and no other rate to compare with."""
    bold, out_of_time = losses_of({3e-4: 1.9, 1e-3: 1.5, 3e-3: 1.2}), losses_of({3e-4: DIVERGED, 1e-3: DIVERGED})

    assert combined_changes({"a": bold, "b": out_of_time})[3e-3] == pytest.approx((-0.4 + 1) / 2)


def test_a_rate_that_no_site_was_asked_to_test_does_not_count() -> None:
    assert choice({"a": losses_of({1e-3: 1.4, 3e-3: 1.5, 0.5: 0.1})}).value == 1e-3


def test_the_problem_of_a_site_is_one_line_of_a_bounded_length() -> None:
    reason = choice({"a": RangeTestResult(problem="\x1b[31m" + "x" * 1000)}).reason

    assert len(reason) < 600
    assert "\x1b" not in reason


def test_one_site_that_reports_nonsense_does_not_decide_against_three() -> None:
    honest = losses_of({1e-3: 1.4, 3e-3: 0.8, 1e-2: DIVERGED})
    liar = losses_of({1e-3: 1e6, 3e-3: 1e6, 1e-2: 0.0}, before=1e-9, samples=64)

    assert choice({"a": honest, "b": honest, "c": honest, "liar": liar}).value == 3e-3


@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.none()
        | st.builds(
            losses_of,
            st.dictionaries(st.sampled_from(LEARNING_RATES), st.none() | st.floats(0, 1e6)),
            before=st.floats(0, 1e6),
            samples=st.integers(0, 1000),
        ),
        min_size=1,
    ),
    st.integers(1, 10**6),
)
def test_whatever_the_sites_report_there_is_a_rate_within_the_bounds_and_a_reason(sites: Any, steps: int) -> None:
    chosen = choose_learning_rate(sites, steps)

    assert 0 < chosen.value <= max(LEARNING_RATES)
    assert chosen.reason
    assert len(chosen.reason) <= 1024
    assert choose_learning_rate(dict(reversed(sites.items())), steps) == chosen


# --- the test that the sites are asked for


def test_a_spec_with_a_rate_asks_for_no_test() -> None:
    assert range_test(a_spec(training={"learningRate": 1e-3})) is None


def test_a_test_uses_the_training_of_the_spec_but_for_the_warm_up() -> None:
    training = {"weightDecay": 0.1, "dropout": 0.2, "maxGradNorm": 2, "proximalMu": 0.3, "warmupSteps": 9, "alpha": 8, "scaling": "Classic"}
    test = range_test(a_spec(training=training, planning={"batchSizes": [2, 8]}, rounds={"deadline": "100s"}))

    assert test is not None
    assert test.learning_rates == LEARNING_RATES
    hyper = test.hyperparameters
    assert (hyper.weight_decay, hyper.dropout, hyper.max_grad_norm, hyper.proximal_mu, hyper.warmup_steps) == (0.1, 0.2, 2.0, 0.3, 0)
    assert (test.alpha, test.scaling, test.batch_size, test.seconds) == (8.0, "Classic", 8, 2.0)


def test_a_test_ends_within_a_day_whatever_the_deadline() -> None:
    test = range_test(a_spec(rounds={"deadline": "200000h"}))

    assert test is not None
    assert test.seconds == 86400.0


def test_the_default_rate_is_the_trainer_s() -> None:
    assert Hyperparameters().learning_rate == DEFAULT_LEARNING_RATE


# --- the schedule

COSINE = LearningRateSchedule.COSINE


def test_the_cosine_is_the_default_and_falls_from_all_of_the_rate_to_a_tenth() -> None:
    shares = [share_at(None, done) for done in (0.0, 0.25, 0.5, 0.75, 1.0)]

    assert shares == pytest.approx([1.0, 0.868, 0.55, 0.232, 0.1], abs=1e-3)
    assert shares == [share_at(COSINE, done) for done in (0.0, 0.25, 0.5, 0.75, 1.0)]


@given(count=st.integers(1, 1000), round_=st.integers(1, 1000))
def test_every_round_of_a_run_uses_a_share_of_the_rate_that_is_no_larger_than_the_round_s_before(count: int, round_: int) -> None:
    spec = a_spec(rounds={"count": count})

    assert 0.1 <= learning_rate_share(spec, round_ + 1) <= learning_rate_share(spec, round_) <= 1.0
    assert learning_rate_share(spec, 1) == 1.0


def test_a_constant_rate_stays() -> None:
    spec = a_spec(rounds={"count": 4}, training={"learningRateSchedule": "Constant"})

    assert [learning_rate_share(spec, round_) for round_ in (1, 2, 3, 4)] == [1.0] * 4


@pytest.mark.parametrize(
    ("training", "count", "value", "reason"),
    [
        ({}, 4, "Cosine", "from round 1 to round 4 the learning rate falls to 23.2 % of it: fast at first, and at last near"),
        ({}, 1, "Cosine", "a single round has all of the learning rate"),
        ({"learningRateSchedule": "Cosine"}, 4, "Cosine", f"{FROM_SPEC}: from round 1 to round 4 the learning rate falls to 23.2 % of it"),
        ({"learningRateSchedule": "Constant"}, 4, "Constant", FROM_SPEC),
    ],
)
def test_the_schedule_has_a_reason(training: dict[str, Any], count: int, value: str, reason: str) -> None:
    found = listed(rounds={"count": count}, training=training)["training.learningRateSchedule"]

    assert found[0] == value
    assert found[1].startswith(reason)


# --- all hyperparameters


def listed(rate: LearningRate = CHOSEN, **sections: Any) -> dict[str, tuple[str, str]]:
    """Value and reason by name, for two sites of 640 and 320 samples that take 60 steps of 16."""
    sites = {"a": a_site("a", base=MPNET), "b": a_site("b", base=MPNET, train_samples=320)}
    plan = Plan(bits=16, batch_size=16, steps=60, ranks={}, forecast=FORECAST)
    found = hyperparameters(a_spec(**sections), sites, {"a": plan, "b": plan}, rate)
    return {one.name: (one.value, one.reason) for one in found}


def test_what_is_left_out_has_a_value_and_a_reason() -> None:
    found = listed()

    assert found["training.learningRate"] == ("0.001", "why")
    assert found["planning.targetModules"][0] == "attention.attn.q, attention.attn.k, attention.attn.v, attention.attn.o"
    assert found["planning.targetModules"][1] == (
        "the attention projections, 48 weights in 12 layers: with the MLP's, adapters of the same rank would be at least 2.2 times as large"
    )
    assert found["training.scaling"][0] == "RsLoRA"
    assert "the same learning rate suits adapters of every rank" in found["training.scaling"][1]
    assert found["training.epochs"] == (
        "1.5 to 3",
        "passes a round: the steps that fit into it at each site, up to 3 passes: see the plans",
    )


def test_what_the_spec_says_is_from_the_spec() -> None:
    found = listed(
        LearningRate(5e-3, FROM_SPEC),
        planning={"targetModules": ["q_proj", "v_proj"]},
        training={"learningRate": 5e-3, "learningRateSchedule": "Constant", "scaling": "Classic", "epochs": 2},
    )

    assert found == {
        "planning.targetModules": ("q_proj, v_proj", FROM_SPEC),
        "training.learningRate": ("0.005", FROM_SPEC),
        "training.learningRateSchedule": ("Constant", FROM_SPEC),
        "training.scaling": ("Classic", FROM_SPEC),
        "training.epochs": ("1.5 to 3", "passes a round that the plans make; the spec allows 2 (training.epochs)"),
    }


def test_a_proximal_term_is_listed_where_the_spec_has_one() -> None:
    assert listed(training={"proximalMu": 0.01})["training.proximalMu"] == ("0.01", FROM_SPEC)
    assert "training.proximalMu" not in listed() | listed(training={"proximalMu": 0})


def test_the_passes_of_given_plans_are_those_of_their_steps() -> None:
    given = {"mode": "Manual", "plans": [{"bits": 16, "rank": 4, "steps": 60}]}

    assert listed(planning=given)["training.epochs"] == ("1.5 to 3", "passes a round that the steps of planning.plans make")


@pytest.mark.parametrize(
    ("mode", "training", "reason"),
    [
        ("Auto", {"maxSteps": 60}, "passes a round that 60 steps make, as many as training.maxSteps allows"),
        ("Uniform", {"maxSteps": 60}, "passes a round that 60 steps make, as many as training.maxSteps allows"),
        (
            "Auto",
            {"maxSteps": 100},
            f"{AS_FIT}, and at most 100 steps (training.maxSteps): see the plans",
        ),
        ("Proportional", {}, f"{AS_FIT}: see the plans"),
        ("UniformWeakest", {}, "passes a round: equal steps at all sites, 3 passes on average if they fit into it: see the plans"),
        (
            "Auto",
            {"maxSteps": 100, "epochs": 2},
            "passes a round that the plans make; the spec allows 2 (training.epochs), and at most 100 steps (training.maxSteps)",
        ),
    ],
)
def test_the_reason_of_the_passes_names_what_decided_the_steps(mode: str, training: dict[str, Any], reason: str) -> None:
    assert listed(planning={"mode": mode}, training=training)["training.epochs"] == ("1.5 to 3", reason)


def test_of_a_single_round_no_learning_rate_is_said_to_fall() -> None:
    found = listed(rounds={"count": 1})["training.learningRateSchedule"]

    assert found == ("Cosine", "a single round has all of the learning rate")


def test_sites_with_equal_passes_are_not_a_range() -> None:
    plan = Plan(bits=16, batch_size=16, steps=40, ranks={}, forecast=FORECAST)
    found = hyperparameters(a_spec(), {"a": a_site("a")}, {"a": plan}, LearningRate(1e-3, "why"))

    assert next(one.value for one in found if one.name == "training.epochs") == "1"

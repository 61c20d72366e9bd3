"""A plan that differs from the last for what was found of its site says so; one that is the same says nothing."""

from fedpipe_operator.planning import History
from fedpipe_operator.rounds.evidence import Evidence
from fedpipe_operator.rounds.replanning import difference, with_reasons
from fedpipe_trainer.contract import Forecast, Plan

FORECAST = Forecast(memory_bytes=1000, seconds=30.0, step_seconds=20.0, upload_bytes=1, download_bytes=1)
PLAN = Plan(bits=16, batch_size=8, steps=12, ranks={"a": 8, "b": 0}, layers=6, lowest_layer=3, forecast=FORECAST, why=("first", "second"))
SLOW = Evidence(History(2), findings={"ward": ("a step took 4 times as long as predicted",)})


def changed(**fields: object) -> Plan:
    return PLAN.model_copy(update=fields)


def test_a_plan_that_differs_for_what_was_found_says_what_and_how_as_its_second_reason() -> None:
    plans = with_reasons({"ward": changed(steps=3)}, {"ward": PLAN}, SLOW)

    assert plans["ward"].why == (
        "first",
        "re-planned: a step took 4 times as long as predicted: 3 instead of 12 steps",
        "second",
    )


def test_a_plan_that_stays_the_same_says_nothing_whatever_was_found() -> None:
    """As in mode Manual, whose plans are given."""
    assert with_reasons({"ward": PLAN}, {"ward": PLAN}, SLOW) == {"ward": PLAN}


def test_a_plan_that_differs_though_nothing_was_found_says_nothing() -> None:
    assert with_reasons({"lab": changed(steps=3)}, {"lab": PLAN}, SLOW)["lab"].why == PLAN.why


def test_a_site_that_had_no_plan_in_the_last_round_takes_part() -> None:
    found = Evidence(History(2), findings={"ward": ("its memory is now 8 GiB instead of 4 GiB",)})

    assert with_reasons({"ward": PLAN}, {}, found)["ward"].why[1].endswith("its memory is now 8 GiB instead of 4 GiB: it takes part")


def test_a_stall_is_a_reason_where_more_layers_are_trained_for_it() -> None:
    stalled = Evidence(History(5, is_stalled=True), deepened=frozenset({"ward", "lab", "given"}))
    now = {"ward": changed(lowest_layer=0), "lab": changed(steps=3), "hall": changed(lowest_layer=0)}

    plans = with_reasons(now, dict.fromkeys(now, PLAN), stalled)

    assert plans["ward"].why[1] == (
        "re-planned: the last rounds brought no improvement, so that the site trains as many layers as it can: "
        "6 instead of 3 trained layers"
    )
    assert plans["lab"].why == plans["hall"].why == PLAN.why


def test_every_difference_of_a_plan_is_told() -> None:
    now = changed(
        bits=8,
        steps=20,
        batch_size=4,
        micro_batch_size=2,
        lowest_layer=0,
        ranks={"a": 4, "b": 16},
        gradient_checkpointing=True,
        cache_activations=True,
    )

    assert difference(PLAN, now) == (
        "8 instead of 16 bits, 20 instead of 12 steps, 4 instead of 8 samples a step, micro-batches of 2 instead of 8 samples, "
        "6 instead of 3 trained layers, a mean rank of 10 instead of 8, with recomputed activations, with cached activations"
    )
    assert difference(now, now) == ""
    assert "without cached activations" in difference(now, PLAN)

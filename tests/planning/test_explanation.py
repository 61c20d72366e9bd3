"""The sentences of a plan: each choice, and for a site that cannot take part the smallest change that lets it."""

import re
from dataclasses import replace
from math import ceil
from typing import Any, Final

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from site_profiles import GIB, SMOLLM2, a_site, a_spec, point, speeds

from fedpipe_operator.planning import History, plan_round
from fedpipe_operator.planning.modes import Plans
from fedpipe_operator.sites import Correction, SiteProfile, carried_over
from fedpipe_trainer.contract import GenerationSpeed, Importance, ImportanceMethod, Plan

SMALL: Final = SMOLLM2.model_copy(update={"layers": 6, "weights": SMOLLM2.weights[:24]})
GPU: Final[dict[str, Any]] = {"device": "NVIDIA T4", "load_peak_bytes": {4: 0, 8: 0, 16: 0, 32: 0}}


def planned(site: SiteProfile, history: History | None = None, **sections: Any) -> Plans:
    return plan_round(a_spec(**sections), {site.name: site}, {}, history or History()).plans


def the_plan(site: SiteProfile, history: History | None = None, **sections: Any) -> Plan:
    plans = planned(site, history, **sections)
    assert plans.excluded == {}
    return plans.plans[site.name]


def the_reason(site: SiteProfile, history: History | None = None, **sections: Any) -> str:
    plans = planned(site, history, **sections)
    assert plans.plans == {}
    return plans.excluded[site.name]


def sentence(plan: Plan, start: str) -> str:
    found = [one for one in plan.why if re.match(start, one)]
    assert len(found) == 1, plan.why
    return found[0]


def a_small_site(**changes: Any) -> SiteProfile:
    return a_site(**({"base": SMALL} | changes))


def test_every_weight_is_named_in_the_plan() -> None:
    assert set(the_plan(a_site()).ranks) == {weight.name for weight in SMOLLM2.weights}


def test_a_plan_has_the_adapter_scaling_of_the_spec() -> None:
    plan = the_plan(a_site(), training={"alpha": 32, "scaling": "Classic"})

    assert (plan.alpha, plan.scaling) == (32, "Classic")


def test_memory_is_planned_for_the_longest_sample_not_for_the_task_s_maximum() -> None:
    long = {"type": "CausalLM", "prompt": "{mr}", "response": "{ref}", "maxLength": 4096}

    assert the_plan(a_site(longest_tokens=128), task=long) == the_plan(a_site())
    assert the_plan(a_site(longest_tokens=0, memory_bytes=64 * GIB), task=long).forecast.memory_bytes > 20 * GIB


# The choices.


def test_steps_that_fill_the_round_are_told_with_their_seconds_and_the_round_s_length() -> None:
    plan = the_plan(a_small_site(points=speeds(100.0), longest_tokens=64), planning={"bits": [16]}, rounds={"deadline": "5m", "count": 1})

    told = (
        r"\d+ steps of 16 samples \(0\.\d+ passes over 640 samples\): as many as fit at .* a step into a round of 4 min, the longest that"
    )
    assert sentence(plan, told).endswith("the longest that rounds.deadline allows")
    assert plan.forecast.seconds <= 240


def test_one_step_is_not_told_in_the_plural() -> None:
    plan = the_plan(a_small_site(), training={"maxSteps": 1}, planning={"batchSizes": [1]})

    sentence(plan, r"1 step of 1 sample \(0\.0016 passes over 640 samples\): all that the spec and the data allow; the round takes ")


def test_a_site_that_trains_the_upper_layers_is_told_what_that_saves() -> None:
    """A short deadline, and a backward pass that is nearly the whole step."""
    points = (point(bits=16, batch=1, speed=60).model_copy(update={"evaluate_tokens_per_second": 600.0}),)
    site = a_site(points=points, load_seconds={})

    plan = the_plan(site, planning={"bits": [16]}, rounds={"deadline": "30s", "count": 1})

    assert 0 < plan.trained_layers < 30
    told = sentence(plan, f"the top {plan.trained_layers} of 30 layers are trained")
    assert re.search(r"the layers below need no backward pass, which saves \d\d\.\d % of a step$", told)


def test_a_site_that_trains_all_layers_is_told_what_fewer_would_save() -> None:
    plan = the_plan(a_site(memory_bytes=64 * GIB), rounds={"count": 1})

    sentence(plan, r"all 30 layers are trained: training only the top 15 layers would save 25.0 % of a step, but reach fewer weights$")


def test_a_stalled_run_trains_all_layers_and_says_why() -> None:
    plan = the_plan(a_site(memory_bytes=64 * GIB), History(round=5, is_stalled=True))

    sentence(plan, "all 30 layers are trained since the improvement of the run stalled")


def test_in_a_stalled_run_a_site_that_cannot_train_all_layers_trains_as_many_as_it_can() -> None:
    """Without recomputed activations, a batch of 16 through all layers needs more than 5 GiB."""
    sections = {"training": {"gradientCheckpointing": False}, "planning": {"bits": [16], "batchSizes": [16], "ranks": [8]}}
    site, stalled = a_site(memory_bytes=5 * GIB), History(round=5, is_stalled=True)
    assert "all layers" in the_reason(site, stalled, **sections | {"planning": sections["planning"] | {"depth": "Full"}})

    plan = the_plan(site, stalled, **sections)

    assert plan.trained_layers == 22
    cannot = "more do not fit into its memory and the deadline, though the improvement of the run stalled"
    sentence(plan, f"the top 22 of 30 layers are trained: {cannot}$")


def test_with_full_depth_there_is_nothing_to_say_about_the_depth() -> None:
    assert not any("layers are trained" in one for one in the_plan(a_site(), planning={"depth": "Full"}).why)


def test_the_most_bits_need_no_reason() -> None:
    plan = the_plan(a_site(memory_bytes=64 * GIB), planning={"bits": [8, 16]})

    sentence(plan, r"the base is kept at 16 bits a number, the most that planning.bits allows$")


def test_bits_that_the_device_cannot_do_are_named() -> None:
    plan = the_plan(a_site(unsupported={16: "no bf16 kernel"}), planning={"bits": [4, 8, 16]})

    assert plan.bits == 8
    sentence(plan, "8 bits: the device does not support 16 bits: no bf16 kernel")


def test_bits_that_ran_out_of_memory_in_the_profile_are_told_with_what_they_would_need() -> None:
    site = a_site(memory_bytes=2 * GIB, out_of_memory={16: 2 * GIB}, longest_tokens=32)

    plan = the_plan(site, planning={"bits": [4, 8, 16], "batchSizes": [1]})

    assert plan.bits == 8
    ran_out = "16 bits would need 2.00 GiB, and ran out of memory when the site was profiled"
    sentence(plan, f"8 bits: {ran_out}; a plan may use 1.70 GiB of the site's 2.00 GiB$")


@pytest.mark.parametrize("correction", [Correction(), Correction(memory=0.5)])
def test_bits_that_ran_out_of_memory_are_not_planned_again_whatever_the_forecast_says(correction: Correction) -> None:
    site = a_site(memory_bytes=8 * GIB, out_of_memory={16: 8 * GIB})
    history = History(round=2, corrections={"ward": correction})

    assert plan_round(a_spec(planning={"bits": [8, 16]}), {"ward": site}, {}, history).plans.plans["ward"].bits == 8


def test_bits_that_ran_out_of_memory_are_planned_once_the_site_has_got_more() -> None:
    grown = a_site(memory_bytes=64 * GIB, out_of_memory={16: 2 * GIB}, points=tuple(one for one in speeds(400.0) if one.bits == 8))

    plan = the_plan(grown, planning={"bits": [4, 8, 16]})

    assert plan.bits == 16
    sentence(plan, "the forecast of memory is by formula only, because no peak was measured at 16 bits")


def test_a_little_more_memory_is_offered_for_bits_that_ran_out_of_it() -> None:
    site = a_small_site(memory_bytes=8 * GIB, out_of_memory={16: 8 * GIB}, train_samples=64_000)

    plan = the_plan(site, planning={"bits": [8, 16]}, rounds={"count": 1, "deadline": "3m"})

    assert "more memory would buy" in plan.why[0]
    assert "16 instead of 8 bits" in plan.why[0]


def test_a_site_whose_only_bits_ran_out_of_memory_is_told_how_much_would_suffice() -> None:
    reason = the_reason(a_site(memory_bytes=8 * GIB, out_of_memory={16: 8 * GIB}), planning={"bits": [16]})

    assert f"give it {ceil(8 * 1024 / 0.85)}Mi of memory instead of 8.00 GiB" in reason


def test_bits_that_do_not_fit_are_told_with_what_they_would_need() -> None:
    site = a_site(**GPU, memory_bytes=int(1.2 * GIB))

    plan = the_plan(site, planning={"bits": [4, 32], "batchSizes": [1]})

    told = sentence(plan, "4 bits: 32 bits would need ")
    assert told.endswith("; a plan may use 1.02 GiB of the site's 1.20 GiB")


def test_bits_that_are_slower_are_told_by_how_much() -> None:
    site = a_small_site(points=(point(bits=4, batch=1, speed=400), point(bits=16, batch=1, speed=100)), memory_bytes=64 * GIB)

    plan = the_plan(site, planning={"bits": [4, 16]}, rounds={"count": 1, "deadline": "3m"})

    sentence(plan, r"4 bits: at 16 bits a step would take 300\.0 % longer$")


def test_a_trifle_of_speed_does_not_decide_over_bits() -> None:
    site = a_small_site(points=(point(bits=4, batch=1, speed=101), point(bits=16, batch=1, speed=100)), memory_bytes=64 * GIB)

    assert the_plan(site, planning={"bits": [4, 16]}).bits == 16


def test_passes_that_do_not_fit_are_told_with_what_the_whole_batch_would_need() -> None:
    plan = the_plan(a_site(memory_bytes=4 * GIB), planning={"bits": [16]})

    assert plan.micro_batch < 16
    told = sentence(plan, rf"a step is computed in micro-batches of {plan.micro_batch} samples?: 16 at once would need ")
    assert told.endswith("; a plan may use 3.40 GiB of the site's 4.00 GiB")


RAN_OUT: Final = History(round=2, corrections={"ward": Correction(memory_limit=int(1.6 * GIB))})
"""A plan of the site ran out of memory, which limits the memory of training, but not that of loading the base."""


def test_after_a_plan_ran_out_of_memory_passes_are_compared_with_what_training_may_use() -> None:
    plan = the_plan(a_site(load_peak_bytes={16: 3 * GIB}), RAN_OUT, planning={"bits": [16]})

    assert plan.forecast.memory_bytes == 3 * GIB
    told = sentence(plan, "a step is computed in micro-batches of")
    assert told.endswith("16 at once would need 4.73 GiB for training; training may use 1.60 GiB of the site's 8.00 GiB")


def test_after_a_plan_ran_out_of_memory_bits_are_compared_with_what_training_may_use() -> None:
    site = a_site(**(GPU | {"load_peak_bytes": {4: 5 * GIB, 32: 5 * GIB}}))

    plan = the_plan(site, RAN_OUT, planning={"bits": [4, 32], "batchSizes": [4]})

    told = sentence(plan, "4 bits: 32 bits would need ")
    needed, may_use = re.fullmatch(r".* need (\S+) GiB for training; training may use (\S+) GiB of the site's 8.00 GiB", told).groups()
    assert float(may_use) == 1.6 < float(needed) < 5


def test_a_step_that_is_divided_among_devices_is_told_and_planned_as_such() -> None:
    site, planning = a_small_site(memory_bytes=64 * GIB, devices=2), {"bits": [16], "batchSizes": [16]}
    plan = the_plan(site, planning=planning)

    assert (plan.batch_size, plan.micro_batch) == (16, 8)
    sentence(plan, "all 16 samples of a step are computed at once, divided among 2 devices")
    assert plan.forecast.memory_bytes < the_plan(replace(site, devices=1), planning=planning).forecast.memory_bytes


def test_the_micro_batches_of_devices_are_told() -> None:
    points = (point(bits=16, batch=2, speed=400), point(bits=16, batch=16, speed=200))
    site = a_small_site(points=points, memory_bytes=64 * GIB, devices=2)

    plan = the_plan(site, planning={"bits": [16], "batchSizes": [2, 16]})

    sentence(plan, "a step is computed in micro-batches of 2 samples, divided among 2 devices: these are faster at this site")


def test_smaller_passes_may_be_faster() -> None:
    site = a_small_site(points=(point(bits=16, batch=4, speed=400), point(bits=16, batch=16, speed=200)), memory_bytes=64 * GIB)

    sentence(the_plan(site, planning={"bits": [16]}), "a step is computed in micro-batches of 4 samples: these are faster at this site")


def test_recomputed_activations_are_told() -> None:
    plan = the_plan(a_small_site(memory_bytes=64 * GIB), training={"gradientCheckpointing": True})

    sentence(plan, "all 16 samples of a step are computed at once; activations are recomputed, which saves memory and costs time")


def test_all_ranks_at_their_largest_are_told_in_one_sentence() -> None:
    plan = the_plan(a_small_site(memory_bytes=64 * GIB, up=1e12), rounds={"count": 1})

    sentence(plan, "24 of 24 weights get an adapter, all of rank 32, the largest of planning.ranks$")


def test_unequal_ranks_are_told_with_the_most_important_weights() -> None:
    scores = {weight.name: 1.0 + index for index, weight in enumerate(SMALL.weights)}
    importance = Importance(method=ImportanceMethod.GRADIENT, samples=64, first_half=scores, second_half=scores)
    site = a_small_site(importance=importance, up=2e5)

    plan = the_plan(site, rounds={"deadline": "3m", "count": 1})

    told = sentence(plan, r"\d+ of 24 weights get an adapter, of rank \d+ to \d+, placed where each byte is predicted to gain most")
    assert "; most important: " in told
    assert "; 10 % of the importance is given to other weights, a quarter of them each round, in case the scores are wrong" in told
    assert "model.layers.5.self_attn.o_proj (1.9 × the mean)" in told
    sentence(plan, "importance by gradient scores of 1 of 1 sites$")


@pytest.mark.parametrize(("share", "told"), [(0.1, True), (0.0, False)])
def test_weights_that_get_a_larger_rank_because_it_is_their_turn_are_explained(share: float, *, told: bool) -> None:
    """Every weight counts the same, and yet some kinds get larger ranks than others."""
    plan = the_plan(a_small_site(up=2e5), rounds={"deadline": "3m", "count": 1}, planning={"bits": [16], "exploration": share})

    turns = "; 10 % of the importance is given to a quarter of the weights, to others each round, so that all are tried"
    assert sentence(plan, r"\d+ of 24 weights get an adapter").endswith(turns) is told


def test_weights_that_count_the_same_are_not_called_important() -> None:
    plan = the_plan(a_small_site(up=2e5), rounds={"deadline": "3m", "count": 1})

    assert not any("most important" in one for one in plan.why)
    sentence(plan, "every weight counts as equally important: no site measured scores")


def test_the_basis_of_the_memory_forecast_is_told() -> None:
    sentence(the_plan(a_site()), r"the forecast of memory is by formula only, because no peak was measured at \d+ bits")
    measured = a_site(points=tuple(point(bits=bits, batch=1, peak=1.2e9) for bits in (4, 8, 16, 32)))
    sentence(the_plan(measured), r"the forecast of memory is calibrated with peaks measured at \d+ bits")


@pytest.mark.parametrize("mode", ["Auto", "Uniform", "Manual"])
def test_a_bandwidth_that_is_assumed_is_told_until_transfers_have_shown_it(mode: str) -> None:
    plans = [{"bits": 16, "rank": 8, "steps": 3}] if mode == "Manual" else []
    planning, site = {"mode": mode, "bits": [16], "plans": plans}, a_small_site(assumed=("up", "down"))

    told = "a bandwidth of 100 Mbit/s up and 1 Gbit/s down is assumed, because none was claimed or could be measured: set "
    sentence(the_plan(site, planning=planning), f"{told}capacity.bandwidth.up and capacity.bandwidth.down of its EdgeSite$")
    shown = History(round=2, corrections={"ward": Correction(transfers=3.0)})
    assert not any("is assumed" in one for one in the_plan(site, shown, planning=planning).why)


# Sites that cannot take part.


def test_a_site_of_too_little_memory_is_told_how_much_it_needs_and_what_else_helps() -> None:
    reason = the_reason(a_site(memory_bytes=GIB), planning={"bits": [4, 8, 16]})

    assert re.fullmatch(
        r"not even its smallest plan fits: give it 1101Mi of memory instead of 1.00 GiB, or allow fewer bits, smaller ranks or smaller"
        r" batchSizes, or lower task.maxLength \(at 4 bits, in micro-batches of 1, the top \d+ of 30 layers\)",
        reason,
    )


def test_a_site_whose_load_takes_longer_than_the_deadline_is_told_a_deadline() -> None:
    reason = the_reason(a_site(load_seconds={4: 300.0}), rounds={"deadline": "5m"})

    assert re.match(r"not even its smallest plan fits: raise rounds.deadline from 5m to 3\d\ds \(a plan may use 80.0 % of it for ", reason)


@pytest.mark.parametrize("answer_seconds", [0.1, 1.0, 8.0], ids="{} s an answer".format)
@pytest.mark.parametrize("load_seconds", [4.0, 30.0], ids="{} s of load".format)
@pytest.mark.parametrize("deadline", [5, 20], ids="{} s".format)
def test_the_deadline_that_a_site_is_told_suffices_though_more_answers_are_generated_in_it(
    answer_seconds: float, load_seconds: float, deadline: int
) -> None:
    speed = GenerationSpeed(prompt_seconds=answer_seconds, token_seconds=0.01, sequence_token_seconds=0)
    site = a_site(points=speeds(50.0), load_seconds={16: load_seconds}, generation={16: speed}, validation_samples=8)
    reason = the_reason(site, planning={"bits": [16]}, rounds={"deadline": f"{deadline}s"})

    advised = re.search(r"to (\d+)s", reason)
    assert advised
    the_plan(site, planning={"bits": [16]}, rounds={"deadline": f"{advised[1]}s"})
    the_reason(site, planning={"bits": [16]}, rounds={"deadline": f"{int(advised[1]) - 2}s"})


RATE: Final = r"([\d.]+ [kMG]?bit/s)"


def rate_of(text: str) -> float:
    """Bits per second of a bandwidth as it is told."""
    number, unit = text.split()
    return float(number) * {"bit/s": 1, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}[unit]


def test_a_site_that_cannot_transfer_in_time_is_told_the_least_bandwidth_and_a_deadline() -> None:
    site = a_site(up=100.0, down=1e9)
    reason = the_reason(site, rounds={"deadline": "5m"})

    told = re.match(
        rf"not even its smallest plan fits: raise its upload bandwidth from 100 bit/s to {RATE} \(at 16 bits, .*?\); or raise"
        r" rounds\.deadline from 5m to (\d+[sm]) \(transfers take 9\d\.\d % of a round\) \(at",
        reason,
    )
    assert told
    the_plan(replace(site, up=rate_of(told[1])), rounds={"deadline": "5m"})
    the_reason(replace(site, up=0.98 * rate_of(told[1])), rounds={"deadline": "5m"})
    the_plan(site, rounds={"deadline": told[2]})


def test_the_bandwidth_that_is_told_is_of_the_direction_that_takes_longer() -> None:
    site, deadline, history = a_site(down=20_000.0, up=1e6), {"deadline": "5m"}, History(round=2, adapter_bytes=10**7)

    told = re.search(rf"raise its download bandwidth from 20 kbit/s to {RATE} \(", the_reason(site, history, rounds=deadline))

    assert told
    the_plan(replace(site, down=rate_of(told[1])), history, rounds=deadline)
    the_reason(replace(site, down=0.98 * rate_of(told[1])), history, rounds=deadline)


def test_where_no_bandwidth_of_one_direction_suffices_that_of_both_is_told() -> None:
    site, deadline, history = a_site(down=200_000.0, up=100.0), {"deadline": "5m"}, History(round=2, adapter_bytes=10**7)

    reason = the_reason(site, history, rounds=deadline)

    told = re.search(rf"raise its bandwidth, up from 100 bit/s to {RATE} and down from 200 kbit/s to {RATE} \(", reason)
    assert told
    the_plan(replace(site, up=rate_of(told[1]), down=rate_of(told[2])), history, rounds=deadline)


def test_a_site_whose_transfers_were_slow_is_told_the_bandwidth_that_they_need() -> None:
    """They took ten times as long as the claim of 1,000 bit/s allows."""
    site, deadline, history = a_site(up=1000.0), {"deadline": "5m"}, History(round=2, corrections={"ward": Correction(transfers=10.0)})

    told = re.search(rf"raise its upload bandwidth from 100 bit/s to {RATE} \(", the_reason(site, history, rounds=deadline))

    assert told
    the_plan(replace(site, up=10 * rate_of(told[1])), history, rounds=deadline)


def test_no_deadline_is_told_that_the_store_does_not_support() -> None:
    slow, halted = a_site(up=1e-3), a_site(points=speeds(1e-4))

    assert "rounds.deadline" not in the_reason(slow)
    reason = the_reason(halted)
    assert "give it a faster device or link, or leave it out of the run: loading, evaluation and one step take " in reason
    assert " and a deadline above 168h is not supported (at " in reason


def test_a_site_that_lacks_memory_and_time_is_told_both() -> None:
    reason = the_reason(a_site(memory_bytes=GIB, down=10_000.0), rounds={"deadline": "5m"})

    time = rf"raise its download bandwidth from 10 kbit/s to {RATE} or raise rounds.deadline from 5m to \d+[sm]"
    assert re.search(rf"give it \d+Mi of memory .* and {time}", reason)


def test_a_site_whose_plans_ran_out_of_memory_is_told_the_claim_that_would_suffice_and_nothing_that_a_run_cannot_change() -> None:
    history = History(round=2, corrections={"ward": Correction(memory_limit=GIB // 2)})

    reason = the_reason(a_site(), history)

    assert re.search(
        r"after a plan of it ran out of memory, training may use 512 MiB of the site's 8.00 GiB: "
        r"raise capacity.memory of its EdgeSite to \d+Mi \(",
        reason,
    )
    claimed = int(reason.split("EdgeSite to ")[1].split("Mi")[0]) << 20
    raised = carried_over(history.corrections["ward"], a_site().resources, a_site(memory_bytes=claimed).resources)
    spec, again = a_spec(), replace(history, corrections={"ward": raised})
    assert plan_round(spec, {"ward": a_site(memory_bytes=claimed)}, {}, again).plans.plans


@pytest.mark.parametrize(
    ("site", "told"),
    [
        ({"measured_memory": 128 * GIB}, r"raise capacity\.memory of its EdgeSite to \d+Mi \("),
        ({"measured_memory": 0}, r"raise capacity\.memory of its EdgeSite to \d+Mi \("),
        (
            {"measured_memory": 8 * GIB},
            r"give it a node with \d+Mi instead of 8.00 GiB, and raise capacity\.memory of its EdgeSite, if it is set, to as much \(",
        ),
        (
            GPU | {"measured_memory": 128 * GIB, "memory_field": "capacity.accelerator.memory"},
            r"raise capacity\.accelerator\.memory of its EdgeSite to \d+Mi \(",
        ),
        (
            GPU | {"measured_memory": 8 * GIB, "memory_field": "capacity.accelerator.memory"},
            r"give it a GPU with \d+Mi instead of 8.00 GiB, and raise capacity\.accelerator\.memory of its EdgeSite, if it is set, to as ",
        ),
    ],
    ids=["the claim is smaller", "not measured", "the node has no more", "the claim of a GPU is smaller", "the GPU has no more"],
)
def test_a_site_whose_plans_ran_out_of_memory_is_told_what_gives_it_more(site: dict[str, Any], told: str) -> None:
    history = History(round=2, corrections={"ward": Correction(memory_limit=GIB // 10)})

    assert re.search(rf"training may use 102 MiB of the site's 8.00 GiB: {told}", the_reason(a_site(**site), history))


def test_a_site_whose_device_supports_none_of_the_bits_is_told_to_add_some() -> None:
    reason = the_reason(a_site(unsupported={4: "no kernel", 8: "too old"}), planning={"bits": [4, 8]})

    assert reason == "its device supports none of planning.bits (4: no kernel; 8: too old): add bits that it supports"


def test_sites_that_lack_what_every_mode_needs_are_excluded_with_advice() -> None:
    fleet = {
        "empty": a_site("empty", train_samples=0),
        "unknown": a_site("unknown", memory_bytes=0),
        "silent": a_site("silent", points=()),
        "halted": a_site("halted", points=(point(bits=16, batch=1).model_copy(update={"gradient_checkpointing": True}),)),
        "good": a_site("good"),
    }

    plans = plan_round(a_spec(), fleet, {}).plans

    assert set(plans.plans) == {"good"}
    assert plans.excluded == {
        "empty": "has no training samples: check data.train of its EdgeSite",
        "halted": "no training step was measured at any bit width: see the log of its profile task",
        "silent": "no training step was measured at any bit width: see the log of its profile task",
        "unknown": "its memory is neither claimed nor measured: set capacity.memory of its EdgeSite",
    }


able = st.builds(
    a_site,
    base=st.just(SMALL),
    device=st.sampled_from(("cpu", "NVIDIA T4")),
    memory_bytes=st.integers(GIB // 8, 2 * GIB),
    up=st.floats(1e4, 1e7),
    down=st.floats(1e5, 1e8),
    load_seconds=st.dictionaries(st.sampled_from((4, 8, 16)), st.floats(0, 100), min_size=1),
    points=st.lists(
        st.builds(point, bits=st.sampled_from((4, 8, 16)), batch=st.sampled_from((1, 8)), speed=st.floats(5, 500)), min_size=1, max_size=4
    ).map(tuple),
)


@settings(max_examples=100, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(able, st.sampled_from(("Auto", "Uniform", "Proportional")))
def test_each_change_that_an_excluded_site_is_told_makes_it_feasible(site: SiteProfile, mode: str) -> None:
    planning = {"mode": mode}
    plans = planned(site, planning=planning, rounds={"deadline": "1m"})
    assume(plans.excluded)

    for change in plans.excluded["ward"].removeprefix("not even its smallest plan fits: ").split("; or "):
        memory, deadline = (re.search(pattern, change) for pattern in (r"give it (\d+)Mi", r"rounds.deadline from 1m to (\d+)s"))
        faster = faster_as_told(site, change)
        assert memory or deadline or faster != site
        larger = {"memory_bytes": int(memory[1]) * 2**20} if memory else {}
        if deadline:
            longer = {"deadline": f"{deadline[1]}s"}
            assert planned(replace(site, **larger), planning=planning, rounds=longer).excluded == {}, change
        if faster != site or not deadline:
            assert planned(replace(faster, **larger), planning=planning, rounds={"deadline": "1m"}).excluded == {}, change


def faster_as_told(site: SiteProfile, change: str) -> SiteProfile:
    """The site with the bandwidth of a remedy; itself without."""
    both = re.search(rf"raise its bandwidth, up from {RATE} to {RATE} and down from {RATE} to {RATE}", change)
    one = re.search(rf"raise its (up|down)load bandwidth from {RATE} to {RATE}", change)
    if both:
        return replace(site, up=rate_of(both[2]), down=rate_of(both[4]))
    return replace(site, **{one[1]: rate_of(one[3])}) if one else site


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(able)
def test_no_smaller_change_of_memory_would_do(site: SiteProfile) -> None:
    reason = planned(site, rounds={"deadline": "1m"}).excluded.get("ward", "")
    memory = re.search(r"give it (\d+)Mi", reason)
    assume(memory and "deadline from" not in reason)

    less = replace(site, memory_bytes=int(0.99 * int(memory[1]) * 2**20) if memory else 0)
    assert "ward" in planned(less, rounds={"deadline": "1m"}).excluded

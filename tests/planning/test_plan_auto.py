"""Mode Auto: the plan of each site, and its reasons."""

from typing import Any

from site_profiles import GIB, a_site, a_spec, point, speeds

from fedpipe_operator.planning import plan_round
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Bits, Plan

SMALL = {"bits": [4, 8, 16], "batchSizes": [1, 2, 4], "ranks": [0, 4, 8]}


PEAKS: tuple[tuple[Bits, float], ...] = ((4, 2.19e9), (8, 2.42e9), (16, 2.12e9))
"""By bits: the peak of a step of 4 × 128 tokens, as measured with SmolLM2-135M."""


def the_plan(site: SiteProfile, **sections: Any) -> Plan:
    plans = plan_round(a_spec(**sections), {site.name: site}, {})
    assert plans.excluded == {}
    return plans.plans[site.name]


def the_reason(site: SiteProfile, **sections: Any) -> str:
    plans = plan_round(a_spec(**sections), {site.name: site}, {})
    assert plans.plans == {}
    return plans.excluded[site.name]


def test_a_site_with_enough_memory_gets_the_largest_values_that_the_run_allows() -> None:
    plan = the_plan(a_site(memory_bytes=64 * GIB), planning=SMALL)

    assert (plan.bits, plan.batch_size, set(plan.ranks.values())) == (16, 4, {8})
    assert plan.why[:3] == (
        "16 bits: the largest value in planning.bits",
        "batch 4: the largest value in planning.batchSizes",
        "rank 8: the largest value in planning.ranks",
    )


def test_every_weight_is_named_in_the_plan() -> None:
    site = a_site()

    assert set(the_plan(site).ranks) == {weight.name for weight in site.base.weights}


def test_the_next_better_option_is_named_with_what_it_would_need() -> None:
    site = a_site(device="NVIDIA T4", memory_bytes=int(1.2 * GIB))

    plan = the_plan(site, planning={"bits": [4, 32], "batchSizes": [1, 64], "ranks": [4, 128]})

    assert plan.why[:3] == (
        "4 bits: 32 bits would need 1.48 GiB of memory; a plan may use 1.02 GiB of the site's 1.20 GiB",
        "batch 1: batch 64 would need 16.0 GiB of memory; a plan may use 1.02 GiB of the site's 1.20 GiB",
        "rank 4: rank 128 would need 1.12 GiB of memory; a plan may use 1.02 GiB of the site's 1.20 GiB",
    )


def test_bits_that_the_device_cannot_do_are_not_planned_and_the_reason_names_them() -> None:
    plan = the_plan(a_site(unsupported={16: "no bf16 kernel"}), planning=SMALL)

    assert plan.bits == 8
    assert plan.why[0] == "8 bits: the device does not support 16 bits: no bf16 kernel"


def test_a_site_where_nothing_fits_is_excluded_with_the_figures() -> None:
    reason = the_reason(a_site(memory_bytes=GIB, runtime_bytes=GIB), planning=SMALL)

    assert reason == "needs at least 1.35 GiB of memory (4 bits, batch 1, rank 4); a plan may use 870 MiB of the site's 1.00 GiB"


def test_a_site_whose_device_supports_none_of_the_bits_is_excluded() -> None:
    reason = the_reason(a_site(unsupported={4: "no kernel", 8: "too old"}), planning={"bits": [4, 8]})

    assert reason == "its device supports none of planning.bits (4: no kernel; 8: too old): add bits that it supports"


def test_a_site_that_cannot_transfer_in_time_is_excluded() -> None:
    reason = the_reason(a_site(down=10_000.0), planning=SMALL, rounds={"deadline": "5m"})

    assert reason.startswith("no training step fits: a plan may use 4 min of rounds.deadline, but loading and transfers already take")


def test_sites_that_lack_what_every_mode_needs_are_excluded_with_advice() -> None:
    fleet = {
        "empty": a_site("empty", train_samples=0),
        "unknown": a_site("unknown", memory_bytes=0),
        "silent": a_site("silent", points=()),
        "good": a_site("good"),
    }

    plans = plan_round(a_spec(), fleet, {})

    assert set(plans.plans) == {"good"}
    assert plans.excluded == {
        "empty": "has no training samples: check data.train of its EdgeSite",
        "silent": "no training step was measured at any bit width: see the log of its profile task",
        "unknown": "its memory is neither claimed nor measured: set capacity.memory of its EdgeSite",
    }


def test_steps_are_all_epochs_of_the_samples() -> None:
    plan = the_plan(a_site(train_samples=30), planning=SMALL, training={"epochs": 2})

    assert plan.steps == 15
    assert "15 steps: 2 × 30 samples in batches of 4; all fit before the deadline" in plan.why


def test_steps_stop_at_max_steps() -> None:
    plan = the_plan(a_site(), planning=SMALL, training={"maxSteps": 7})

    assert plan.steps == 7
    assert "7 steps: training.maxSteps; all fit before the deadline" in plan.why


def test_steps_that_do_not_fit_before_the_deadline_are_the_under_training_rate() -> None:
    # 640 samples of 64 tokens at 100 tokens/s take 410 s, and a plan may use 4 of 5 minutes.
    plan = the_plan(a_site(points=speeds(100.0), longest_tokens=64), planning=SMALL, rounds={"deadline": "5m"})

    assert plan.batch_size == 4
    assert plan.steps == 92
    assert "92 of 160 steps (1 × 640 samples in batches of 4): rounds.deadline cuts the rest; under-training rate 42 %" in plan.why
    assert plan.forecast.seconds <= 240


def test_bits_that_are_too_slow_for_all_samples_are_not_chosen_when_others_are_fast_enough() -> None:
    site = a_site(points=(point(bits=16, batch=1, speed=100), point(bits=4, batch=1, speed=400), point(bits=8, batch=1, speed=50)))

    plan = the_plan(site, planning=SMALL, rounds={"deadline": "5m"})

    assert (plan.bits, plan.steps) == (4, 160)
    assert plan.why[0] == "4 bits: 8 bits would complete only 28 % of its steps before the deadline"


def test_a_marginal_difference_in_speed_does_not_decide_over_bits() -> None:
    site = a_site(points=(point(bits=16, batch=1, speed=100), point(bits=4, batch=1, speed=101), point(bits=8, batch=1, speed=50)))

    assert the_plan(site, planning=SMALL, rounds={"deadline": "5m"}).bits == 16


def test_on_a_cpu_the_reasons_include_that_fewer_bits_would_save_no_memory() -> None:
    peaks = tuple(point(bits=bits, batch=4, peak=peak) for bits, peak in PEAKS)
    site = a_site(runtime_bytes=838_000_000, points=peaks, load_peak_bytes={4: 1.5e9, 8: 1.4e9, 16: 0.9e9})

    plan = the_plan(site, planning={"bits": [4, 8, 16], "batchSizes": [4], "ranks": [8]})

    assert plan.why[-1] == "fewer bits would save no memory on this CPU: 4 bits would need 2.03 GiB"
    assert plan.why[-2].endswith("memory calibrated with peaks measured at 16 bits")


def test_the_plan_has_the_adapter_scaling_of_the_spec() -> None:
    plan = the_plan(a_site(), training={"alpha": 32, "scaling": "Classic"})

    assert (plan.alpha, plan.scaling) == (32, "Classic")


def test_memory_is_planned_for_the_longest_sample_not_for_the_tasks_maximum() -> None:
    long = {"type": "CausalLM", "prompt": "{mr}", "response": "{ref}", "maxLength": 4096}

    short_samples = the_plan(a_site(longest_tokens=128), task=long, planning=SMALL)

    assert short_samples == the_plan(a_site(), planning=SMALL)
    assert the_plan(a_site(longest_tokens=0, memory_bytes=64 * GIB), task=long, planning=SMALL).forecast.memory_bytes > 20 * GIB

"""What benchmarks/fleet charges its rules for: the memory of the tiers, the starts of a round, the bits of the base. Nothing is trained."""

import json
from functools import cache
from typing import Any, Final

import pytest
from fleet_benchmark import FLEET, ROOT, output_of

_FIGURES: Final = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from dataclasses import replace
from configuration import Given, Run
from fleet_sites import measured_profile, plan, plan_of_passes, site_profiles
from held import curve_of
from results import stored
from site_data import SiteData, stored_data
from sweeps import ablations, main, rivals
from tables import under_training
from fedpipe_operator.planning import History
from fedpipe_operator.planning.fleet import ROUND_OVERHEAD


def profiles(run):
    return site_profiles(run, stored_data(run.problem, len(run.slowdowns)))


def clock(run):
    whole = plan_of_passes(run, profiles(run), run.problem.batch_size).values()
    now = curve_of(run)
    return {
        "stored": stored(run)["curve"][0]["seconds"],
        "whole batches": max(one.forecast.seconds for one in whole) + ROUND_OVERHEAD,
        "held": now[0]["seconds"],
        "second held round": now[1]["seconds"],
        "end": now[-1]["seconds"],
        "time": run.seconds,
        "accuracies kept": [point["accuracy"] for point in now] == [one["accuracy"] for one in stored(run)["curve"]][: len(now)],
    }


def memory(run):
    sites = profiles(run)
    made = plan(run, sites, History()).plans.plans
    return {name: [one.forecast.memory_bytes, sites[name].memory_bytes, one.micro_batch] for name, one in made.items()}


def starts(run):
    one = {name: made.forecast.seconds for name, made in plan(run, profiles(run), History()).plans.plans.items()}
    twice = replace(run, starts=2)
    two = {name: made.forecast.seconds for name, made in plan(twice, profiles(twice), History()).plans.plans.items()}
    return [two[name] - one[name] for name in one]


def widths(run, shrunk):
    sites = profiles(run)
    sites |= {name: replace(sites[name], memory_bytes=int(part * sites[name].memory_bytes)) for name, part in shrunk.items()}
    return {name: [one.bits, one.micro_batch] for name, one in plan(run, sites, History()).plans.plans.items()}


given = {name: run for name, run in main().items() if isinstance(run, Run) and isinstance(run.work, tuple)}
fedit, ablated = given["independent, FedIT, seed 0"], ablations()
profile = measured_profile(fedit)
ours, wide = (ablated[f"independent, {name}, seed 0"] for name in ("ours", "32 bits at every site"))
larger = replace(fedit, work=(*fedit.work[:-1], Given(8, 64)))
rest = [6, 8, 32.0, 1000, 8]  # the last one: the batch
toy = [{"plans": {"site-0": [10, *rest]}}, {"plans": {"site-0": [2, *rest], "site-1": [1, *rest]}}]
data = (SiteData(40, 5.0, 9), SiteData(60, 5.0, 9))
print(json.dumps({
    "clocks": {name: clock(run) for name, run in given.items() if stored(run)},
    "memory": {name: memory(run) for name, run in rivals().items() if isinstance(run, Run) and isinstance(run.work, tuple)},
    "too large": list(memory(larger)),
    "starts": starts(fedit),
    "load and first step": profile.load_seconds[16] + profile.first_step_seconds[16],
    "slowdowns": fedit.slowdowns,
    "ours": widths(ours, {}),
    "wide": widths(wide, {}),
    "too small": widths(wide, {"site-7": 0.9}),
    "under-training": [under_training(toy, data, sites) for sites in ((0, 1), (0,), (1,))],
}))
"""


@cache
def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output_of("-c", _FIGURES, str(FLEET), str(ROOT / "examples")))
    return found


def test_the_stored_sites_give_the_clock_of_the_runs_that_were_made_with_whole_batches() -> None:
    made_before = {name: one for name, one in figures()["clocks"].items() if one["stored"] != pytest.approx(one["held"])}

    assert len(made_before) >= 10
    assert {name: one["stored"] for name, one in made_before.items()} == {
        name: pytest.approx(one["whole batches"], rel=1e-9) for name, one in made_before.items()
    }


def test_a_rival_that_is_held_to_memory_learns_the_same_and_later() -> None:
    clocks = figures()["clocks"]

    assert all(one["accuracies kept"] for one in clocks.values())
    assert all(one["held"] > one["whole batches"] for one in clocks.values())
    assert all(one["second held round"] == pytest.approx(2 * one["held"]) and one["end"] <= one["time"] for one in clocks.values())


def test_no_site_of_a_rival_needs_more_memory_than_its_tier_has() -> None:
    needs = [one for sites in figures()["memory"].values() for one in sites.values()]

    assert [needed for needed, has, _ in needs if needed > 0.85 * has] == []


def test_the_smaller_a_tier_the_fewer_samples_at_once() -> None:
    passes = [samples for _, _, samples in figures()["memory"]["FedIT"].values()]

    assert passes == sorted(passes, reverse=True)
    assert passes[0] == 16 > passes[-1]


def test_a_site_whose_memory_carries_no_pass_is_left_out() -> None:
    assert figures()["too large"] == [f"site-{index}" for index in range(7)]


def test_a_second_start_of_a_round_costs_a_load_a_first_step_and_a_download() -> None:
    once = figures()["load and first step"]
    slowdowns = figures()["slowdowns"]
    rest = [(more - slowdown * once) / slowdown for more, slowdown in zip(figures()["starts"], slowdowns, strict=True)]

    assert min(rest) > 0, "the download"
    assert rest == pytest.approx([rest[0]] * len(rest)), "of the same adapter"


def test_bits_are_those_of_the_run_at_every_site() -> None:
    assert {bits for bits, _ in figures()["ours"].values()} == {16}
    assert {bits for bits, _ in figures()["wide"].values()} == {32}


def test_at_32_bits_all_sites_of_this_small_base_take_part_as_the_readme_says() -> None:
    assert len(figures()["wide"]) == len(figures()["ours"]) == 8


def test_a_site_whose_memory_does_not_carry_the_bits_of_all_drops_out() -> None:
    assert figures()["wide"].keys() - figures()["too small"].keys() == {"site-7"}


def test_what_a_round_leaves_untrained_is_the_under_training_rate() -> None:
    # Of 40 samples, 80 count as 40, then 16; of 60, none in the round that the site misses, then 8.
    of_both, of_the_first, of_the_second = figures()["under-training"]

    assert of_both == pytest.approx(1 - (40 + 24) / 2 / 100)
    assert of_the_first == pytest.approx(1 - (40 + 16) / 2 / 40)
    assert of_the_second == pytest.approx(1 - (0 + 8) / 2 / 60)

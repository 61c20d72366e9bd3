"""What limits a plan, and what more of each resource would buy: said so that the user can act on it."""

import re
from typing import Any, Final

import pytest
from site_profiles import GIB, SMOLLM2, a_site, a_spec, point, speeds

from fedpipe_operator.planning import History, plan_round
from fedpipe_operator.sites import Correction, SiteProfile
from fedpipe_trainer.contract import Plan

SMALL: Final = SMOLLM2.model_copy(update={"layers": 6, "weights": SMOLLM2.weights[:24]})
GPU: Final[dict[str, Any]] = {"device": "NVIDIA T4", "load_peak_bytes": {4: 0, 8: 0, 16: 0, 32: 0}}
SLOW_PASSES: Final = tuple(point(bits=16, batch=batch, speed=50.0 * batch) for batch in (1, 16))
"""Of a device on which larger passes are much faster."""


def the_plan(site: SiteProfile, history: History | None = None, **sections: Any) -> Plan:
    return plan_round(a_spec(**sections), {site.name: site}, {}, history or History()).plans.plans[site.name]


def a_small_site(**changes: Any) -> SiteProfile:
    return a_site(**({"base": SMALL} | changes))


def test_a_site_with_all_steps_and_ranks_is_limited_by_its_data() -> None:
    plan = the_plan(a_small_site(memory_bytes=64 * GIB, train_samples=32, up=1e12), rounds={"count": 1})

    assert plan.limited_by == "Data"
    assert plan.why[0] == "limited by its data: a round makes 3 passes over its 32 samples; more of the same would teach it little"


@pytest.mark.parametrize(
    ("samples", "done"),
    [(1, "3 steps of 1 sample (3 passes over 1 sample): "), (24, "6 steps of 12 samples (3 passes over 24 samples): ")],
)
def test_passes_over_few_samples_are_those_that_the_site_makes(samples: int, done: str) -> None:
    """A batch of 16 has one sample where there is one, and a pass over 24 samples has two steps, so that three passes have six."""
    few = a_small_site(memory_bytes=64 * GIB, train_samples=samples, up=1e12, points=speeds(100.0))
    plan = the_plan(few, rounds={"count": 1}, planning={"batchSizes": [16], "depth": "Full"})

    assert len([one for one in plan.why if one.startswith(done)]) == 1


def test_no_round_count_is_advised_that_the_run_has_passed() -> None:
    site = a_small_site(points=speeds(100.0))
    rounds = {"count": 6, "deadline": "8h"}
    told = [the_plan(site, History(round=round_), rounds=rounds).why[0] for round_ in range(1, 7)]
    advised = [int(found[1]) if (found := re.search(r"rounds\.count of (\d+)", one)) else None for one in told]

    assert advised[0] is not None
    assert all(count is None or count >= round_ for round_, count in enumerate(advised, start=1))
    assert advised[-1] is None


@pytest.mark.parametrize(("training", "name"), [({"maxSteps": 2}, "training.maxSteps is 2"), ({"epochs": 0.5}, "training.epochs is 0.5")])
def test_a_site_with_all_that_the_spec_allows_is_limited_by_the_spec(training: dict[str, Any], name: str) -> None:
    plan = the_plan(a_small_site(memory_bytes=64 * GIB, train_samples=64, up=1e12), rounds={"count": 1}, training=training)

    assert plan.limited_by == "Spec"
    assert plan.why[0] == f"limited by the spec: {name}"


def test_a_slow_site_is_limited_by_time() -> None:
    plan = the_plan(a_small_site(memory_bytes=64 * GIB, points=speeds(100.0), up=1e12), rounds={"deadline": "5m", "count": 1})

    assert plan.limited_by == "Time"
    offer = r"1 min more a round \(by raising rounds\.deadline\) would buy 25 instead of 19 steps \(predicted progress \+1\d\.\d %\)"
    assert re.fullmatch(
        f"limited by time: {offer}; 25 % more download bandwidth, memory or upload bandwidth would bring less than 1 %", plan.why[0]
    )


def test_a_site_with_a_slow_uplink_is_limited_by_bandwidth() -> None:
    """More time would help as well, since seconds serve the upload too: it is the upload that takes most of them."""
    plan = the_plan(a_small_site(memory_bytes=64 * GIB, up=2e3, train_samples=64), rounds={"deadline": "5m", "count": 1})

    assert plan.limited_by == "Bandwidth"
    assert plan.why[0].startswith("limited by bandwidth: 500 bit/s more upload bandwidth would buy ")


def test_a_site_with_a_slow_downlink_is_limited_by_bandwidth_and_told_which() -> None:
    """The global adapter takes 112 of the 144 seconds; a quarter more time beside the transfers would buy less."""
    history = History(round=2, adapter_bytes=14 * 10**6)
    sites = {"slow": a_site("slow", down=1e6, train_samples=5000), "other": a_site("other", train_samples=5000)}
    spec = a_spec(rounds={"count": 1, "deadline": "3m"}, planning={"bits": [16]})

    def plan(down: float) -> Plan:
        return plan_round(spec, sites | {"slow": a_site("slow", down=down, train_samples=5000)}, {}, history).plans.plans["slow"]

    offer = re.match(r"limited by bandwidth: 250 kbit/s more download bandwidth would buy (\d+) instead of (\d+) steps, ", plan(1e6).why[0])
    assert plan(1e6).limited_by == "Bandwidth"
    assert offer
    assert (plan(1.25e6).steps, plan(1e6).steps) == (int(offer[1]), int(offer[2]))
    assert plan(1.25e6).limited_by == "Time"


def test_a_site_of_little_memory_is_limited_by_memory() -> None:
    """More memory would allow larger passes, which are much faster at this site."""
    site = a_site(**GPU, memory_bytes=int(1.4 * GIB), points=SLOW_PASSES, up=1e12)

    plan = the_plan(site, planning={"bits": [16]}, rounds={"count": 1, "deadline": "10m"})

    assert plan.limited_by == "Memory"
    assert re.match(
        r"limited by memory: 358 MiB more memory would buy 120 instead of 62 steps, micro-batches of 4 instead of 2 samples \(", plan.why[0]
    )


def test_a_run_of_one_choice_is_limited_by_its_data() -> None:
    plan = the_plan(
        a_small_site(memory_bytes=64 * GIB, up=1e12), planning={"bits": [16], "ranks": [4], "batchSizes": [1]}, rounds={"count": 1}
    )

    assert plan.limited_by == "Data"


def test_what_too_few_samples_would_train_is_no_gain_of_more_memory_or_time() -> None:
    """The small site could carry every rank of all weights, and most are left out: not for lack of anything that it could have more of."""
    sites = {
        "small": a_small_site(name="small", memory_bytes=64 * GIB, train_samples=16, up=1e9),
        "large": a_small_site(name="large", memory_bytes=64 * GIB, train_samples=950, up=2e4),
    }

    plan = plan_round(a_spec(rounds={"deadline": "10m"}), sites, {}).plans.plans["small"]

    assert 0 < sum(rank > 0 for rank in plan.ranks.values()) < 24
    assert (plan.limited_by, plan.why[0].partition(":")[0]) == ("Data", "limited by its data")


def test_in_a_large_fleet_the_limit_is_not_computed_and_the_plan_says_so() -> None:
    fleet = {name: a_small_site(name=name) for name in (f"site-{index}" for index in range(51))}

    plan = plan_round(a_spec(), fleet, {}).plans.plans["site-7"]

    assert plan.limited_by == ""
    assert plan.why[0] == "what limits it is not computed in fleets of more than 50 sites"


def tiers(samples: int) -> dict[str, SiteProfile]:
    """Sites that differ in memory and speed by factors up to 8."""
    return {
        f"slower-{slower}": a_site(
            f"slower-{slower}", points=speeds(4000.0 / slower), memory_bytes=int(16 * GIB / slower), train_samples=samples
        )
        for slower in (1, 2, 4, 8)
    }


@pytest.mark.parametrize(("deadline", "count", "samples"), [("5m", 10, 5000), ("30m", 10, 5000), ("30m", 20, 500)])
def test_sites_of_every_speed_are_limited_by_time_where_more_steps_are_wanted(deadline: str, count: int, samples: int) -> None:
    """Those that already take as many steps as the fastest, but with smaller batches, included."""
    spec = a_spec(rounds={"deadline": deadline, "count": count}, planning={"bits": [4, 8, 16]})

    plans = plan_round(spec, tiers(samples), {}).plans.plans

    assert {plan.limited_by for plan in plans.values()} == {"Time"}
    for plan in plans.values():
        offer = re.search(
            rf" more a round \(.*?\) would buy (\d+) instead of {plan.steps} steps.*? \(predicted progress \+(\d+)", plan.why[0]
        )
        assert offer, plan.why[0]
        assert int(offer[1]) > plan.steps
        assert int(offer[2]) > 10


def test_a_slow_site_is_limited_by_time_though_the_fastest_has_all_the_steps_that_its_data_allow() -> None:
    sites = {
        "slow": a_site("slow", points=speeds(60.0), train_samples=9500, memory_bytes=64 * GIB),
        "fast": a_site("fast", points=speeds(4000.0), train_samples=500, memory_bytes=64 * GIB),
    }

    plans = plan_round(a_spec(rounds={"deadline": "10m", "count": 10}, planning={"bits": [16]}), sites, {}).plans.plans

    assert plans["slow"].steps > plans["fast"].steps
    assert {name: plan.limited_by for name, plan in plans.items()} == {"slow": "Time", "fast": "Data"}


def test_a_site_of_so_few_steps_that_a_quarter_more_time_gives_no_other_is_limited_by_time() -> None:
    site = a_small_site(memory_bytes=64 * GIB, points=speeds(20.0), validation_samples=0, longest_tokens=64, load_seconds={})

    plan = the_plan(site, planning={"bits": [16], "batchSizes": [16], "depth": "Full"}, rounds={"deadline": "140s", "count": 1})

    assert plan.steps == 2
    assert plan.limited_by == "Time"
    assert plan.why[0] == "limited by time: one more step, of 51 s, would need a longer round (by raising rounds.deadline)"


def test_a_site_whose_deepest_choice_no_round_is_long_enough_for_has_a_plan_that_tells_what_limits_it() -> None:
    site = a_small_site(
        device="NVIDIA T4",
        memory_bytes=1016 * 2**20,
        up=1e7,
        down=48_617_832.9,
        load_seconds={16: 78.126, 8: 22.157},
        points=(point(bits=16, batch=8, speed=438.87), point(bits=8, batch=8, speed=296.56), point(bits=4, batch=1, speed=253.95)),
    )

    assert the_plan(site, rounds={"deadline": "1m"}).limited_by


def test_what_a_better_plan_gives_up_is_told_beside_what_it_gains() -> None:
    plan = the_plan(a_site(unsupported={16: "no kernel"}, memory_bytes=2 * GIB), planning={"bits": [4, 8, 16]})

    assert (plan.steps, plan.trained_layers) == (12, 30)
    assert " would buy 19 instead of 12 steps, but 22 instead of 30 trained layers (predicted progress +16.4 %)" in plan.why[0]


def test_a_site_whose_plan_ran_out_of_memory_is_limited_by_memory_since_a_larger_claim_raises_what_it_may_use() -> None:
    history = History(round=2, corrections={"ward": Correction(memory_limit=int(1.08 * GIB))})
    site = a_site(**GPU, memory_bytes=int(1.4 * GIB), points=SLOW_PASSES, up=1e12)

    assert the_plan(site, history, planning={"bits": [16]}, rounds={"count": 2, "deadline": "10m"}).limited_by == "Memory"


def test_the_bandwidth_that_is_offered_is_a_share_of_the_one_that_transfers_showed() -> None:
    """The site claims 20 kbit/s, and its transfers take ten times as long as that."""
    history = History(round=2, corrections={"ward": Correction(transfers=10.0)})
    site = a_small_site(memory_bytes=64 * GIB, up=2e4, train_samples=64)

    plan = the_plan(site, history, rounds={"deadline": "5m", "count": 1})

    assert plan.why[0].startswith("limited by bandwidth: 500 bit/s more upload bandwidth would buy ")


def test_where_the_planner_chose_the_length_of_the_round_the_field_that_makes_it_longer_is_told() -> None:
    def plan(count: int, deadline: str) -> Plan:
        return the_plan(a_small_site(memory_bytes=64 * GIB, train_samples=6400), rounds={"count": count, "deadline": deadline})

    told = plan(10, "8h").why[0]

    assert re.match(
        r"limited by time: .* more a round \(a rounds\.count of 7 instead of 10 makes rounds at least that much longer\) would buy ", told
    )
    assert plan(10, "9h").steps == plan(10, "8h").steps < plan(7, "8h").steps

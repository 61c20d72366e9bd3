"""The modes: what each plans for a fleet of unequal sites, and the plans that a spec gives."""

from dataclasses import replace
from typing import Any, Final

import pytest
from site_profiles import GIB, MPNET, SMOLLM2, a_site, a_spec, speeds

from fedpipe_operator.api import PlanningMode
from fedpipe_operator.planning import History, Plans, plan_round
from fedpipe_operator.planning.fleet import RUN_PASSES
from fedpipe_operator.sites import Correction, SiteProfile
from fedpipe_trainer.contract import BaseModelFacts, Plan, WeightShape

COMMON: Final = ("Uniform", "UniformWeakest", "Proportional")


def planned(*sites: SiteProfile, rounds: dict[str, Any] | None = None, **planning: Any) -> Plans:
    spec = a_spec(planning={"bits": [4, 16]} | planning, rounds=rounds or {})
    return plan_round(spec, {site.name: site for site in sites}, {}).plans


def given(*plans: dict[str, Any], sites: tuple[SiteProfile, ...] = (), mode: str = "Manual") -> Plans:
    return planned(*(sites or (a_site(),)), mode=mode, plans=plans)


def choice(plan: Plan) -> tuple[int, int]:
    return plan.bits, max(plan.ranks.values())


WEAK: Final = a_site("weak", memory_bytes=2 * GIB, train_samples=64)
STRONG: Final = a_site("strong", memory_bytes=64 * GIB, points=speeds(4000.0), train_samples=6400)
TINY: Final = a_site("tiny", memory_bytes=GIB // 2)


@pytest.mark.parametrize("mode", COMMON)
def test_all_sites_get_the_bits_and_the_rank_of_the_weakest(mode: str) -> None:
    both = planned(WEAK, STRONG, mode=mode).plans
    weakest = planned(WEAK, mode=mode).plans["weak"]

    assert {choice(plan) for plan in both.values()} == {choice(weakest)}
    assert {len(set(plan.ranks.values())) for plan in both.values()} == {1}


@pytest.mark.parametrize("mode", COMMON)
def test_the_common_choice_is_limited_by_the_spec_or_by_the_sites_that_can_run_no_more(mode: str) -> None:
    def why(*sites: SiteProfile) -> str:
        (reason,) = {plan.why[1] for plan in planned(*sites, mode=mode).plans.values()}
        return reason

    small = [replace(WEAK, name=name, unsupported={16: "no bf16"}) for name in "abcde"]

    assert (
        why(STRONG) == why(STRONG, WEAK) == "16 bits, rank 32: the same for all sites, the most that planning.bits and planning.ranks allow"
    )
    assert why(small[0], STRONG) == "4 bits, rank 32: the same for all sites, limited by a, which can run no more"
    assert why(*small, STRONG) == "4 bits, rank 32: the same for all sites, limited by a, b, c and 2 other sites, which can run no more"


@pytest.mark.parametrize("mode", COMMON)
def test_what_limits_the_steps_is_told(mode: str) -> None:
    def limit(deadline: str = "20h", **training: Any) -> tuple[str, str]:
        spec = a_spec(planning={"bits": [16], "mode": mode}, rounds={"deadline": deadline, "count": 1}, training=training)
        plan = plan_round(spec, {site.name: site for site in (WEAK, STRONG)}, {}).plans.plans["weak"]
        return plan.limited_by, plan.why[0].partition(" steps: ")[2]

    if mode == "Proportional":
        assert limit() == ("Data", "3 passes over its data")
        assert limit(epochs=0.5) == ("Spec", "0.5 passes (training.epochs) over its data")
        assert limit(epochs=0.5, maxSteps=100) == ("Spec", "0.5 passes (training.epochs) over its data")
        assert limit(maxSteps=3) == ("Spec", "limited by training.maxSteps")
        assert limit("20s") == ("Time", "as many as fit into the common length of the round")
    else:
        assert limit() == ("Data", "equal at all sites, the mean of 3 passes over each site's data")
        assert limit(epochs=0.5) == ("Spec", "equal at all sites, the mean of 0.5 passes (training.epochs) over each site's data")
        assert limit(maxSteps=100) == (
            "Spec",
            "equal at all sites, the mean of 3 passes over each site's data, at most training.maxSteps each",
        )
        assert limit(maxSteps=3) == ("Spec", "equal at all sites, limited by training.maxSteps")
        assert limit("20s") == ("Time", "equal at all sites, as many as fit before the deadline at the slowest one (weak)")


@pytest.mark.parametrize("mode", ["Uniform", "UniformWeakest"])
def test_in_the_uniform_modes_all_sites_take_the_same_steps(mode: str) -> None:
    plans = planned(WEAK, STRONG, mode=mode).plans

    assert plans["weak"].steps == plans["strong"].steps
    assert plans["weak"].why[0].startswith(f"{plans['weak'].steps} steps: equal at all sites")


def test_in_mode_proportional_a_faster_site_takes_more_steps_in_the_same_time() -> None:
    slow, fast = (a_site(name, points=speeds(speed), train_samples=50_000) for name, speed in (("slow", 400.0), ("fast", 4000.0)))

    plans = planned(slow, fast, mode="Proportional").plans

    assert plans["fast"].steps > 5 * plans["slow"].steps
    assert plans["fast"].forecast.seconds == pytest.approx(plans["slow"].forecast.seconds, rel=0.1)
    assert plans["fast"].why[0] == f"{plans['fast'].steps} steps: as many as fit into the common length of the round"


@pytest.mark.parametrize("mode", ["Auto", "Proportional"])
def test_with_steps_by_speed_all_rounds_together_make_three_passes_over_the_data_if_the_deadline_allows(mode: str) -> None:
    sites = (a_site("one", train_samples=2000), a_site("two", train_samples=1000, points=speeds(4000.0)))

    plans = planned(*sites, mode=mode, rounds={"count": 2, "deadline": "8h"}).plans

    passes = 2 * sum(plan.steps * plan.batch_size for plan in plans.values()) / 3000
    assert RUN_PASSES <= passes * 1.05 < 1.3 * RUN_PASSES


@pytest.mark.parametrize("mode", COMMON)
def test_a_site_without_a_feasible_choice_does_not_limit_the_others(mode: str) -> None:
    plans = planned(TINY, STRONG, mode=mode)

    assert plans.plans == planned(STRONG, mode=mode).plans
    assert plans.excluded["tiny"].startswith("not even its smallest plan fits: give it ")


def unlike() -> tuple[SiteProfile, ...]:
    odd = a_site("odd", unsupported={16: "no bf16"}, memory_bytes=64 * GIB)
    return odd, *(a_site(name, unsupported={4: "no kernel"}, memory_bytes=64 * GIB) for name in ("a", "b"))


def test_in_mode_uniform_a_site_that_shares_no_bit_width_with_most_is_excluded() -> None:
    plans = planned(*unlike(), mode="Uniform")

    assert set(plans.plans) == {"a", "b"}
    advice = "allow bits that all sites support, or set planning.mode to Auto"
    assert plans.excluded == {"odd": f"cannot run the choice that most sites can (16 bits, rank 32): {advice}"}


@pytest.mark.parametrize("mode", ["UniformWeakest", "Proportional"])
def test_where_every_site_must_run_the_choice_none_may_exist(mode: str) -> None:
    plans = planned(*unlike(), mode=mode)

    assert plans.plans == {}
    assert set(plans.excluded.values()) == {
        "no choice of bits and rank can be run by every site: allow more bits or smaller ranks, or set planning.mode to Auto"
    }


def test_a_given_plan_is_obeyed_in_all_its_fields() -> None:
    plan = given(
        {
            "bits": 4,
            "rank": 6,
            "steps": 11,
            "batchSize": 12,
            "microBatchSize": 3,
            "layers": 10,
            "gradientCheckpointing": True,
            "cacheActivations": True,
        },
        sites=(a_site(has_cache=True),),
    ).plans["ward"]

    assert (plan.bits, plan.steps, plan.batch_size, plan.micro_batch_size) == (4, 11, 12, 3)
    assert (plan.layers, plan.lowest_layer, plan.trained_layers) == (30, 20, 10)
    assert (plan.gradient_checkpointing, plan.cache_activations) == (True, True)
    assert {weight.layer: plan.ranks[weight.name] for weight in SMOLLM2.weights} == {layer: 6 * (layer >= 20) for layer in range(30)}
    assert plan.why == ("given by planning.plans",)


def test_a_given_plan_has_a_forecast_although_it_does_not_fit() -> None:
    plan = given({"bits": 16, "rank": 8, "steps": 100_000}, sites=(TINY,)).plans["tiny"]

    assert plan.forecast.memory_bytes > TINY.memory_bytes
    assert plan.forecast.seconds > 3600


def test_a_given_plan_beyond_a_site_s_memory_or_the_deadline_is_obeyed_and_says_so() -> None:
    def why(site: SiteProfile, steps: int, **rounds: Any) -> tuple[str, ...]:
        plans = planned(site, mode="Manual", plans=[{"bits": 16, "rank": 32, "steps": steps}], rounds=rounds)
        assert plans.plans["ward"].steps == steps
        return plans.plans["ward"].why

    no_memory = "it may run out of memory: 4.74 GiB are predicted, and a plan may use 870 MiB of the site's 1.00 GiB: give it fewer bits"
    no_time = "it may miss the deadline: 13 min 58 s are predicted, and a plan may use 48 s (80.0 % of rounds.deadline, 1m): "

    first, *others = why(a_site(memory_bytes=GIB), 300, deadline="1m")
    assert first == "given by planning.plans"
    assert [other.startswith(told) for other, told in zip(others, (no_memory, no_time), strict=True)] == [True, True]
    assert others[1].endswith(": give it fewer steps or layers, or raise rounds.deadline")
    assert why(a_site(load_seconds={16: 60.0}), 1, deadline="1m")[1].endswith(", 1m): raise rounds.deadline")
    assert why(a_site(), 3) == ("given by planning.plans",)


@pytest.mark.parametrize(
    ("micro_batch", "warns"),
    [
        (1, ()),
        (16, ("it may run out of memory: 4.74 GiB for training are predicted, and training may use 1.60 GiB of the site's 8.00 GiB",)),
    ],
)
def test_a_given_plan_is_warned_of_memory_only_where_its_training_is_forecast_to_need_too_much(micro_batch: int, warns: tuple[str]) -> None:
    """Another has run out of memory, so that training may use less than loading the base needs."""
    plan = {"bits": 16, "rank": 32, "steps": 3, "microBatchSize": micro_batch}
    history = History(round=2, corrections={"ward": Correction(memory_limit=int(1.6 * GIB))})
    site = a_site(load_peak_bytes={16: 3 * GIB})

    plans = plan_round(a_spec(planning={"mode": "Manual", "plans": [plan]}), {"ward": site}, {}, history).plans

    given_by, *reasons = plans.plans["ward"].why
    assert given_by == "given by planning.plans"
    assert tuple(reason.split(": give it")[0] for reason in reasons) == warns


def test_what_a_given_plan_leaves_out_is_the_whole_batch_and_all_layers() -> None:
    plan = given({"bits": 16, "rank": 8, "steps": 5}).plans["ward"]

    assert (plan.batch_size, plan.micro_batch, plan.trained_layers, set(plan.ranks.values())) == (16, 16, 30, {8})


def test_of_given_plans_a_site_gets_its_own_or_the_one_without_a_site() -> None:
    sites = (a_site("a"), a_site("b"))

    plans = given({"bits": 16, "rank": 8, "steps": 5}, {"site": "b", "bits": 4, "rank": 2, "steps": 9}, sites=sites)

    assert {name: (plan.bits, plan.steps) for name, plan in plans.plans.items()} == {"a": (16, 5), "b": (4, 9)}


def test_in_mode_manual_a_site_without_a_given_plan_is_excluded() -> None:
    plans = given({"site": "b", "bits": 4, "rank": 2, "steps": 9}, sites=(a_site("a"), a_site("b")))

    assert set(plans.plans) == {"b"}
    assert plans.excluded == {"a": "planning.plans has no plan for it: add one, or one without a site"}


def test_in_mode_auto_one_site_may_have_a_given_plan_and_the_others_are_planned() -> None:
    sites = (a_site("a"), a_site("b"))

    plans = given({"site": "b", "bits": 4, "rank": 2, "steps": 9}, sites=sites, mode="Auto").plans

    assert plans["b"].why == ("given by planning.plans",)
    assert plans["a"] == planned(sites[0]).plans["a"], "whose round is longer than the given plan takes"


@pytest.mark.parametrize("mode", ["Manual", "Auto"])
def test_a_given_plan_that_the_device_cannot_follow_excludes_the_site(mode: str) -> None:
    old = a_site(unsupported={4: "no kernel"})

    plans = given({"site": "ward", "bits": 4, "rank": 8, "steps": 5}, sites=(old,), mode=mode)

    assert plans.plans == {}
    assert plans.excluded == {"ward": "its device does not support the 4 bits of planning.plans: no kernel"}


def test_a_given_plan_that_is_known_to_run_out_of_memory_excludes_the_site_until_it_has_more() -> None:
    site, plan = a_site(memory_bytes=2 * GIB, out_of_memory={16: 2 * GIB}), {"site": "ward", "bits": 16, "rank": 8, "steps": 5}

    reason = "the 16 bits of planning.plans need more than 2.00 GiB of memory: give it more memory, or plan fewer bits"
    assert given(plan, sites=(site,), mode="Manual").excluded == {"ward": reason}
    assert given(plan, sites=(replace(site, memory_bytes=3 * GIB),), mode="Manual").plans["ward"].bits == 16


@pytest.mark.parametrize(
    ("layers", "changes", "reason"),
    [
        (
            None,
            {"has_cache": True},
            "below its trained layers, but trains all 30: set layers to fewer than 30, or leave cacheActivations out",
        ),
        (
            30,
            {"has_cache": True},
            "below its trained layers, but trains all 30: set layers to fewer than 30, or leave cacheActivations out",
        ),
        (10, {}, "but it has no cache volume: set cache of its EdgeSite, or leave cacheActivations out"),
        (
            10,
            {"has_cache": True, "base": SMOLLM2.model_copy(update={"encoder_decoder": True})},
            "which an encoder-decoder model cannot: leave cacheActivations out",
        ),
    ],
)
def test_a_given_plan_that_cannot_cache_activations_excludes_the_site(layers: int | None, changes: dict[str, Any], reason: str) -> None:
    plan = {"bits": 16, "rank": 8, "steps": 5, "cacheActivations": True} | ({"layers": layers} if layers else {})

    assert given(plan, sites=(a_site(**changes),)).excluded["ward"].endswith(reason)
    assert given(plan | {"layers": 10}, sites=(a_site(has_cache=True),)).plans["ward"].cache_activations


def test_a_given_plan_that_recomputes_what_the_model_cannot_recompute_excludes_the_site() -> None:
    plan, site = {"bits": 16, "rank": 8, "steps": 5, "gradientCheckpointing": True}, a_site(base=MPNET)

    reason = "planning.plans recomputes its activations, which transformers cannot do in a mpnet model: leave gradientCheckpointing out"
    assert given(plan, sites=(site,), mode="Manual").excluded == {"ward": reason}
    assert given(plan, sites=(a_site(),), mode="Manual").plans["ward"].gradient_checkpointing


@pytest.mark.parametrize("mode", ["Auto", "Uniform"])
def test_where_the_model_cannot_recompute_activations_no_plan_does_and_it_says_so(mode: str) -> None:
    spec = a_spec(training={"gradientCheckpointing": True}, planning={"mode": mode})
    plans = {base.architecture: plan_round(spec, {"ward": a_site(base=base)}, {}).plans.plans["ward"] for base in (MPNET, SMOLLM2)}

    reason = "activations are kept although training.gradientCheckpointing asks to recompute them: "
    assert {name: plan.gradient_checkpointing for name, plan in plans.items()} == {"mpnet": False, "llama": True}
    assert {name: any(why.startswith(reason) for why in plan.why) for name, plan in plans.items()} == {"mpnet": True, "llama": False}


def without_layers() -> BaseModelFacts:
    """A model whose profile does not say to which layer a weight belongs."""
    return SMOLLM2.model_copy(update={"weights": tuple(WeightShape(name=one.name, d_out=one.d_out, d_in=576) for one in SMOLLM2.weights)})


def test_a_given_depth_at_which_no_weight_can_get_an_adapter_excludes_the_site() -> None:
    plans = given({"bits": 16, "rank": 8, "steps": 5, "layers": 4}, sites=(a_site(base=without_layers()),))

    assert plans.excluded == {"ward": "in the top 4 of 30 layers of planning.plans no weight can get an adapter: train more layers"}


@pytest.mark.parametrize("mode", [mode for mode in PlanningMode if mode is not PlanningMode.MANUAL])
@pytest.mark.parametrize("base", [without_layers(), SMOLLM2.model_copy(update={"layers": 1, "weights": SMOLLM2.weights[:4]})])
def test_models_of_one_layer_or_of_unknown_layers_are_planned_whole(mode: PlanningMode, base: BaseModelFacts) -> None:
    plan = planned(a_site(base=base), mode=mode).plans["ward"]

    assert plan.lowest_layer == 0
    assert any(plan.ranks.values())


@pytest.mark.parametrize("mode", [mode for mode in PlanningMode if mode is not PlanningMode.MANUAL])
def test_without_any_site_there_is_no_plan(mode: PlanningMode) -> None:
    assert planned(mode=mode) == Plans({}, {})


def test_a_run_of_equal_ranks_may_be_aggregated_by_factors() -> None:
    spec = a_spec(
        planning={"mode": "Manual", "plans": [{"bits": 16, "rank": 8, "steps": 5, "layers": 30}]}, aggregation={"method": "FedIT"}
    )

    plans = plan_round(spec, {"a": a_site("a"), "b": a_site("b")}, {}).plans.plans

    assert {rank for plan in plans.values() for rank in plan.ranks.values()} == {8}

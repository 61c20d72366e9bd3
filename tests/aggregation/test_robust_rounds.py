"""What a malicious site can and cannot do to a round: bounded shares, clipped increments, and the rules, from updates to the adapter."""

import io
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load
from toy_rounds import HEAD, Fleet

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.aggregation import RULES, AggregationConfig, CannotAggregateError, RoundInput, RoundResult, aggregate_round
from fedpipe_operator.aggregation.coordinates import trimmed_mean
from fedpipe_operator.api import Clipping
from fedpipe_operator.rounds.records import Contribution, RoundCommit
from fedpipe_trainer.contract import TrainResult

DEFAULTS = AggregationConfig(method="Exact", max_rank=64)
SEVEN = ["a", "b", "c", "d", "e", "f", "g"]
WEIGHTS = {"layer.0.q": (12, 10), "layer.0.v": (10, 14)}


def run(round_input: RoundInput, config: AggregationConfig = DEFAULTS) -> tuple[RoundResult, bytes]:
    sink = io.BytesIO()
    return aggregate_round(round_input, config, sink), sink.getvalue()


def a_fleet(sites: list[str] = SEVEN, **changes: object) -> Fleet:
    """Heterogeneous ranks; every site trains both weights, with equal steps unless they are given."""
    ranks = {site: {"layer.0.q": 1 + index % 3, "layer.0.v": 1 + index % 2} for index, site in enumerate(sites)}
    fleet = Fleet(WEIGHTS, ranks, {site: 10 + index for index, site in enumerate(sites)}, {HEAD: (3, 10)})
    return replace(fleet, **changes)


def product(tensors: dict[str, np.ndarray], weight: str, rank: int | None = None) -> np.ndarray:
    a, b = (tensors[f"base_model.model.{weight}.lora_{x}.weight"].astype(np.float64) for x in "AB")
    return b[:, :rank] @ a[:rank]


def increment(fleet: Fleet, site: str, weight: str, before: dict[str, np.ndarray]) -> np.ndarray:
    rank, scale = fleet.ranks[site][weight], fleet.plan().plans[site].scale(weight)
    return scale * product(fleet.tensors(site), weight) - (product(before, weight, rank) if before else 0)


def with_scaled(fleet: Fleet, round_input: RoundInput, site: str, factor: float, *, head: float | None = None) -> RoundInput:
    """The site's B factors times this factor, so that its products grow by as much; the head too, if no other factor is given."""
    of_head = np.float32(factor if head is None else head)
    tensors = {
        key: np.float32(factor) * tensor if "lora_B" in key else of_head * tensor if key == HEAD else tensor
        for key, tensor in fleet.tensors(site).items()
    }
    return replace(round_input, candidates={**round_input.candidates, site: fleet.candidate(site, tensors)})


def contribution(result: RoundResult, site: str) -> Contribution:
    assert result.commit is not None
    return next(one for one in result.commit.contributions if one.site == site)


# --- The bound on a site's weight


def test_by_default_no_site_of_three_has_more_than_half_of_the_weight(fleet: Fleet) -> None:
    result, _ = run(replace(fleet, samples={"alpha": 10**12, "beta": 30, "gamma": 10}).round_input())

    assert [round(contribution(result, site).share, 4) for site in ("alpha", "beta", "gamma")] == [0.5, 0.375, 0.125]


def test_the_bound_holds_in_each_weight_over_the_sites_that_trained_it() -> None:
    fleet = a_fleet(["a", "b", "c"], samples={"a": 10**12, "b": 1, "c": 1})
    _, written = run(fleet.round_input(), replace(DEFAULTS, clipping=Clipping.NONE))

    for weight in WEIGHTS:
        dense = sum(share * increment(fleet, site, weight, {}) for site, share in (("a", 0.5), ("b", 0.25), ("c", 0.25)))
        np.testing.assert_allclose(product(load(written), weight), dense, atol=1e-5)


def test_a_bound_of_the_spec_holds_for_two_sites_too() -> None:
    fleet = a_fleet(["a", "b"], samples={"a": 10**12, "b": 1})

    result, _ = run(fleet.round_input(), replace(DEFAULTS, max_site_weight=0.6))

    assert contribution(result, "a").share == pytest.approx(0.6)


def test_without_a_profile_in_the_plan_the_samples_are_at_most_those_that_the_plan_has(fleet: Fleet) -> None:
    round_input = replace(fleet, steps={"alpha": 6, "beta": 3}).round_input()
    plan = round_input.plan.model_copy(update={"samples": {}})

    result, _ = run(replace(round_input, plan=plan))

    assert [contribution(result, site).samples for site in ("alpha", "beta", "gamma")] == [6, 3, 1]


# --- With how many others an update is mixed


def one_deeper(sites: list[str], min_sites: int) -> RoundInput:
    """The first of the sites trains both weights, the others the second one only."""
    ranks = {site: {"layer.0.q": 2 if site == sites[0] else 0, "layer.0.v": 2} for site in sites}
    round_input = Fleet(WEIGHTS, ranks, dict.fromkeys(sites, 10), {HEAD: (3, 10)}).round_input()
    return replace(round_input, plan=round_input.plan.model_copy(update={"min_sites": dict.fromkeys(sites, min_sites)}))


def test_a_weight_that_one_site_alone_trained_stays_as_it_was_though_the_round_has_others() -> None:
    """By plans that its author gives, a run could otherwise have one site's own increment in its global adapter."""
    result, written = run(one_deeper(["a", "b", "c"], min_sites=2))

    tensors = load(written)
    assert result.commit is not None
    assert [one.site for one in result.commit.contributions] == ["a", "b", "c"]
    assert not [key for key in tensors if "layer.0.q" in key]
    assert np.linalg.norm(product(tensors, "layer.0.v")) > 0
    assert result.commit.learned_by.keys() == {"layer.0.v"}


def test_a_site_that_asks_for_no_others_may_train_a_weight_alone() -> None:
    _, written = run(one_deeper(["a", "b", "c"], min_sites=1))

    assert np.linalg.norm(product(load(written), "layer.0.q")) > 0


def test_a_site_that_asks_for_more_in_a_weight_than_the_others_is_left_out_of_that_weight_alone() -> None:
    fleet = a_fleet(["a", "b", "c"])
    ranks = fleet.ranks | {"c": {"layer.0.q": 0, "layer.0.v": 2}}
    fleet = replace(fleet, ranks=ranks, samples=dict.fromkeys("abc", 10))
    round_input = fleet.round_input()
    plan = round_input.plan.model_copy(update={"min_sites": {"a": 3, "b": 1, "c": 1}})

    _, written = run(replace(round_input, plan=plan), replace(DEFAULTS, clipping=Clipping.NONE))

    np.testing.assert_allclose(product(load(written), "layer.0.q"), increment(fleet, "b", "layer.0.q", {}), atol=1e-5)
    dense = sum(increment(fleet, site, "layer.0.v", {}) for site in "abc") / 3
    np.testing.assert_allclose(product(load(written), "layer.0.v"), dense, atol=1e-5)


# --- Clipping


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.floats(4, 60), st.sampled_from(["a", "d", "g"]))
def test_a_clipped_update_counts_as_its_shortened_self_in_weights_and_head(factor: float, bad: str) -> None:
    """Two rounds against the dense formula: each increment is cut to three times the median, and then averaged."""
    fleet = a_fleet()
    _, first = run(fleet.round_input(), replace(DEFAULTS, clipping=Clipping.NONE))
    this, before = fleet.next_round(), load(first)
    attack = with_scaled(this, this.round_input(first), bad, factor)

    result, second = run(attack, replace(DEFAULTS, max_site_weight=1.0, max_norm=1e9))

    total, factors, after = sum(fleet.samples.values()), [], load(second)
    for name in (*WEIGHTS, HEAD):
        moved = {}
        for site in SEVEN:
            own = factor if site == bad else 1.0
            if name == HEAD:
                moved[site] = own * this.tensors(site)[HEAD].astype(np.float64) - before[HEAD]
            else:
                start = product(before, name, this.ranks[site][name])
                moved[site] = own * (increment(this, site, name, before) + start) - start
        longest = 3 * np.median([np.linalg.norm(one) for one in moved.values()])
        clips = {site: min(1.0, longest / np.linalg.norm(one)) for site, one in moved.items()}
        factors += [clips[bad]] if clips[bad] < 1 else []
        start = before[HEAD] if name == HEAD else product(before, name)
        dense = start + sum(this.samples[site] / total * clips[site] * moved[site] for site in SEVEN)
        found = after[HEAD] if name == HEAD else product(after, name)
        np.testing.assert_allclose(found, dense, atol=2e-6 * np.linalg.norm(dense) * factor)
    one = contribution(result, bad)
    assert (one.clipped, one.smallest_clip) == (len(factors), pytest.approx(min(factors, default=1.0), rel=1e-5))
    assert [contribution(result, site).clipped for site in SEVEN if site != bad] == [0] * 6


def test_a_malicious_site_of_three_cannot_move_the_round_beyond_its_share_of_what_is_usual() -> None:
    fleet = a_fleet(["a", "b", "c"], samples={"a": 10**12, "b": 1, "c": 1})
    round_input = fleet.round_input()

    for factor in (1e1, 1e2, -1e2):
        _, written = run(with_scaled(fleet, round_input, "a", factor), replace(DEFAULTS, max_norm=1e9))
        for weight in WEIGHTS:
            lengths = [float(np.linalg.norm(increment(fleet, site, weight, {}))) for site in "bc"]
            assert np.linalg.norm(product(load(written), weight)) <= 0.5 * 3 * max(lengths) + 0.25 * sum(lengths)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_honest_sites_of_eight_times_the_steps_are_not_clipped(power: float) -> None:
    """Under Adam an increment grows between √τ and τ. In round 1 the head is its start and little more, whatever the steps."""
    steps = dict(zip(SEVEN, (40, 40, 20, 10, 10, 5, 5), strict=True))
    fleet = a_fleet(steps=steps)
    round_input = fleet.round_input()
    for site in SEVEN:
        round_input = with_scaled(fleet, round_input, site, (steps[site] / 5) ** power, head=1.0)

    result, _ = run(round_input)

    assert [contribution(result, site).clipped for site in SEVEN] == [0] * 7


def test_a_site_of_few_steps_is_not_louder_for_it() -> None:
    """Its increment is divided by its steps, so it may be only as much shorter: a site of a tenth of the steps, a tenth as long."""
    fleet = a_fleet(steps=dict.fromkeys(SEVEN, 20) | {"c": 2})

    result, _ = run(fleet.round_input())

    one = contribution(result, "c")
    assert one.clipped == len(WEIGHTS)
    assert one.smallest_clip < 0.5


def test_an_honest_site_that_was_cut_short_is_neither_clipped_nor_refused() -> None:
    """With AdamW an increment grows by less than its steps: of 3 instead of 40 steps it is here a quarter as long, and not a thirteenth."""
    fleet = a_fleet(steps=dict.fromkeys(SEVEN, 40))
    cut = with_scaled(fleet, fleet.round_input(), "c", 0.27).candidates["c"]
    result = AdmittedUpdate(TrainResult.model_validate(dict(cut.result) | {"steps": 3, "samples": 3}))
    round_input = fleet.round_input()

    for clipping in (Clipping.CLIP, Clipping.REFUSE):
        candidates = {**round_input.candidates, "c": replace(cut, result=result)}
        found, _ = run(replace(round_input, candidates=candidates), replace(DEFAULTS, clipping=clipping))
        assert contribution(found, "c").clipped == 0


def test_by_choice_an_update_with_a_long_increment_is_refused_at_the_cost_of_its_site_alone() -> None:
    fleet = a_fleet()
    attack = with_scaled(fleet, fleet.round_input(), "c", 50.0)
    config = replace(DEFAULTS, clipping=Clipping.REFUSE, max_norm=1e9)
    others = [site for site in SEVEN if site != "c"]
    without = replace(attack, candidates={site: attack.candidates[site] for site in others})

    result, written = run(attack, config)

    verdict = result.verdicts["c"]
    assert (verdict.accepted, verdict.reason) == (False, "IncrementTooLong")
    assert verdict.message.startswith("adapter of site c: length of the increment of ")
    assert verdict.message.endswith(" times what is usual in the round, expected at most 3")
    assert result.commit is not None
    assert result.commit.refused == {"c": verdict}
    assert written == run(without, config)[1]


@pytest.mark.parametrize("rule", ["Mean", "Krum"])
def test_a_round_that_loses_its_quorum_to_refusals_is_not_aggregated_whatever_the_rule_needs(rule: str) -> None:
    fleet = a_fleet(needed=7)
    config = replace(DEFAULTS, rule=rule, malicious_sites=2, clipping=Clipping.REFUSE, max_norm=1e9)

    result, written = run(with_scaled(fleet, fleet.round_input(), "c", 50.0), config)

    assert result.commit is None
    assert written == b""
    assert not result.verdicts["c"].accepted


@pytest.mark.parametrize("method", ["FedIT", "ZeroPad"])
def test_b_of_0_and_a_long_a_do_not_own_the_average_of_a(method: str) -> None:
    """What passes the gate (an A below `maxNorm`) is clipped: the other half of trust.md's `B = 0, A = 1e30`."""
    ranks = dict.fromkeys(SEVEN, dict.fromkeys(WEIGHTS, 2))
    fleet = a_fleet(ranks=ranks)
    tensors = {
        key: np.zeros_like(tensor) if "lora_B" in key else np.full_like(tensor, 1e3) if "lora_A" in key else tensor
        for key, tensor in fleet.tensors("c").items()
    }
    round_input = fleet.round_input()
    attack = replace(round_input, candidates={**round_input.candidates, "c": fleet.candidate("c", tensors)})

    bounded, unbounded = (
        load(run(attack, replace(DEFAULTS, method=method, max_norm=1e6, clipping=clipping))[1])
        for clipping in (Clipping.CLIP, Clipping.NONE)
    )

    key = "base_model.model.layer.0.q.lora_A.weight"
    honest = max(np.linalg.norm(fleet.tensors(site)[key]) for site in SEVEN)
    assert np.linalg.norm(bounded[key]) < 3 * honest < np.linalg.norm(unbounded[key])


# --- The rules


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.data())
def test_two_rounds_of_a_coordinate_rule_equal_the_dense_one(data: st.DataObject) -> None:
    """ΔW ← ΔW + rule(τ̄ D_k / τ_k) with heterogeneous ranks and uneven steps, and so the head from round 2 on."""
    rule = data.draw(st.sampled_from(["Median", "TrimmedMean"]))
    reduce = {"Median": lambda values: np.median(values, axis=0), "TrimmedMean": lambda values: trimmed_mean(values, 2)}[rule]
    config = replace(DEFAULTS, rule=rule, malicious_sites=2, clipping=Clipping.NONE)
    dense: dict[str, np.ndarray] = {weight: np.zeros(shape) for weight, shape in WEIGHTS.items()}
    head, written = None, None
    for round_ in (1, 2):
        steps = {site: data.draw(st.integers(1, 40)) for site in SEVEN}
        fleet = a_fleet(round=round_, steps=steps)
        before = load(written) if written else {}
        _, written = run(fleet.round_input(written), config)
        after = load(written)

        tau = np.array([steps[site] for site in SEVEN], float)
        common = min(tau.mean(), 1.5 / (1 / tau).mean())
        for weight in WEIGHTS:
            moved = np.stack([common / steps[site] * increment(fleet, site, weight, before) for site in SEVEN])
            dense[weight] = dense[weight] + reduce(moved)
            np.testing.assert_allclose(product(after, weight), dense[weight], atol=2e-6 * np.linalg.norm(moved))
        tensors = np.stack([fleet.tensors(site)[HEAD] for site in SEVEN])
        paces = (common / tau)[:, None, None]
        head = reduce(tensors) if head is None else head + reduce(paces * (tensors - head))
        np.testing.assert_allclose(after[HEAD], head, atol=1e-5 * np.linalg.norm(tensors))


@pytest.mark.parametrize(("rule", "kept"), [("Krum", 1), ("MultiKrum", 3)])
def test_krum_is_the_mean_of_the_sites_that_lie_closest_over_all_weights_and_the_head(rule: str, kept: int) -> None:
    fleet = a_fleet()
    _, first = run(fleet.round_input())
    this, before = fleet.next_round(), load(first)
    round_input = this.round_input(first)

    result, written = run(round_input, replace(DEFAULTS, rule=rule, malicious_sites=2))

    own = [np.concatenate([increment(this, site, weight, before).ravel() for weight in WEIGHTS]) for site in SEVEN]
    points = np.stack([np.concatenate([one, this.tensors(site)[HEAD].ravel()]) for one, site in zip(own, SEVEN, strict=True)])
    squares = ((points[:, None] - points) ** 2).sum(axis=2)
    scores = {site: np.sort(squares[index])[1:4].sum() for index, site in enumerate(SEVEN)}
    best = sorted(sorted(SEVEN, key=lambda site: scores[site])[:kept])
    assert result.commit is not None
    assert [one.site for one in result.commit.contributions if one.share > 0] == best
    assert all(one.norm > 0 for one in result.commit.contributions)
    assert result.commit.rule == rule
    alone = replace(round_input, candidates={site: round_input.candidates[site] for site in best})
    assert written == run(alone, DEFAULTS)[1]


def test_a_site_of_which_the_head_alone_is_far_away_is_not_selected() -> None:
    fleet, config = a_fleet(), replace(DEFAULTS, rule="Krum", malicious_sites=2)
    round_input = fleet.round_input()
    best = next(site for site in SEVEN if contribution(run(round_input, config)[0], site).share)
    tensors = fleet.tensors(best)
    far = fleet.candidate(best, {**tensors, HEAD: np.float32(1000) + tensors[HEAD]})

    result, _ = run(replace(round_input, candidates={**round_input.candidates, best: far}), config)

    assert contribution(result, best).share == 0


@pytest.mark.parametrize("rule", ["Median", "TrimmedMean", "Krum", "MultiKrum"])
def test_two_of_seven_that_send_anything_do_not_move_a_robust_round_far(rule: str) -> None:
    fleet = a_fleet(ranks=dict.fromkeys(SEVEN, dict.fromkeys(WEIGHTS, 2)))
    config = replace(DEFAULTS, rule=rule, malicious_sites=2, clipping=Clipping.NONE, max_norm=1e9)
    attack = with_scaled(fleet, with_scaled(fleet, fleet.round_input(), "b", -100.0), "f", -100.0)

    result, written = run(attack, config)

    honest = max(float(np.linalg.norm(increment(fleet, site, "layer.0.q", {}))) for site in SEVEN)
    assert np.linalg.norm(product(load(written), "layer.0.q")) < 1.5 * honest
    if "Krum" in rule:
        assert contribution(result, "b").share == contribution(result, "f").share == 0


def test_too_few_accepted_updates_for_krum_write_nothing() -> None:
    sink = io.BytesIO()

    with pytest.raises(CannotAggregateError, match="Krum with maliciousSites 2 needs 7 updates, and 6 were accepted: select more"):
        aggregate_round(a_fleet(SEVEN[:6]).round_input(), replace(DEFAULTS, rule="Krum", malicious_sites=2), sink)

    assert sink.getvalue() == b""


@pytest.mark.parametrize(("rule", "mixed"), [("Mean", 7), ("Median", 7), ("TrimmedMean", 7), ("Krum", 1), ("MultiKrum", 4)])
def test_an_update_is_refused_if_its_site_asks_to_be_mixed_with_more_than_the_rule_selects(rule: str, mixed: int) -> None:
    """Also where the rule was changed after the round was planned."""
    fleet = a_fleet(SEVEN)

    def commit(least: int) -> RoundCommit | None:
        planned = fleet.round_input()
        asking = replace(planned, plan=planned.plan.model_copy(update={"min_sites": dict.fromkeys(SEVEN, least)}))
        return aggregate_round(asking, replace(DEFAULTS, rule=rule), io.BytesIO()).commit

    assert commit(mixed) is not None
    assert commit(mixed + 1) is None


def test_sites_that_do_not_train_a_weight_are_at_distance_of_its_increment() -> None:
    ranks = {site: {"layer.0.q": 2, "layer.0.v": 0 if site in "ab" else 2} for site in SEVEN}
    fleet = a_fleet(ranks=ranks, head={})

    result, _ = run(fleet.round_input(), replace(DEFAULTS, rule="Krum", malicious_sites=2))

    own = {site: [increment(fleet, site, w, {}) if ranks[site][w] else np.zeros(WEIGHTS[w]) for w in WEIGHTS] for site in SEVEN}
    points = np.stack([np.concatenate([one.ravel() for one in own[site]]) for site in SEVEN])
    squares = ((points[:, None] - points) ** 2).sum(axis=2)
    best = min(range(7), key=lambda index: np.sort(squares[index])[1:4].sum())
    assert contribution(result, SEVEN[best]).share == 1


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_sites_and_the_number_of_threads_change_no_byte(rule: str) -> None:
    config = replace(DEFAULTS, rule=rule, malicious_sites=2)
    round_input = a_fleet().round_input()
    turned = replace(round_input, candidates=dict(reversed(round_input.candidates.items())))

    assert run(turned, replace(config, threads=3)) == run(round_input, config)


@pytest.mark.parametrize("rule", ["Mean", "Median", "MultiKrum"])
def test_memory_of_a_bounded_round_does_not_grow_with_the_number_of_weights(rule: str) -> None:
    def peak(count: int) -> int:
        weights = {f"layer.{index}.q": (200, 200) for index in range(count)}
        fleet = Fleet(weights, dict.fromkeys(SEVEN, dict.fromkeys(weights, 8)), dict.fromkeys(SEVEN, 1))
        round_input = fleet.round_input()
        tracemalloc.start()
        aggregate_round(round_input, replace(DEFAULTS, rule=rule, max_rank=8), _Discarded())
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    assert peak(16) < 1.5 * peak(4)


class _Discarded(io.BytesIO):
    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        return memoryview(data).nbytes

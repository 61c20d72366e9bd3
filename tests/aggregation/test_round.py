"""Aggregation of a round from end to end: the adapter and the commit it writes, its memory, and what it reads."""

import hashlib
import io
import json
import tracemalloc
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load
from toy_rounds import HEAD, Fleet

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.aggregation import AggregationConfig, CannotAggregateError, RoundInput, RoundResult, aggregate_round
from fedpipe_operator.aggregation.factors import SiteWeight, WeightUpdates
from fedpipe_operator.aggregation.increments import WeightIncrements, learned_by
from fedpipe_operator.aggregation.normalization import MAX_SERVER_RATE, by_data
from fedpipe_operator.aggregation.tensors import open_tensors
from fedpipe_operator.api import Clipping
from fedpipe_operator.rounds.records import RoundCommit

DEFAULTS = AggregationConfig(method="Exact", max_rank=64)
EXACT = replace(DEFAULTS, max_site_weight=1.0, clipping=Clipping.NONE)
"""The plain weighted mean; what bounds it by default is in test_robust_rounds.py."""


def run(round_input: RoundInput, config: AggregationConfig = EXACT) -> tuple[RoundResult, bytes]:
    sink = io.BytesIO()
    return aggregate_round(round_input, config, sink), sink.getvalue()


def product(tensors: dict[str, np.ndarray], weight: str, rank: int | None = None) -> np.ndarray:
    a, b = (tensors[f"base_model.model.{weight}.lora_{x}.weight"].astype(np.float64) for x in "AB")
    return b[:, :rank] @ a[:rank]


def test_two_rounds_equal_the_dense_recursion(fleet: Fleet) -> None:
    dense = {weight: np.zeros(shape) for weight, shape in fleet.weights.items()}
    written = None
    for this in (fleet, fleet.next_round()):
        before = load(written) if written else None
        _, written = run(this.round_input(written))
        for weight in fleet.weights:
            sites = [site for site in fleet.ranks if fleet.ranks[site].get(weight)]
            total = sum(fleet.samples[site] for site in sites)
            for site in sites:
                rank, scale = fleet.ranks[site][weight], fleet.plan().plans[site].scale(weight)
                start = product(before, weight, rank) if before else 0
                dense[weight] += fleet.samples[site] / total * (scale * product(this.tensors(site), weight) - start)
            np.testing.assert_allclose(product(load(written), weight), dense[weight], atol=1e-6 * np.linalg.norm(dense[weight]))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.data())
def test_two_rounds_of_uneven_steps_equal_dense_fednova(data: st.DataObject) -> None:
    """ΔW ← ΔW + Σ n_k τ_k · Σ n_k D_k/τ_k over the sites that trained the weight (within the limit), and so the head from round 2 on."""
    sites = ["one", "two", "three"][: data.draw(st.integers(1, 3))]
    weights = {"q": (12, 10), "v": (10, 14)}
    ranks = {site: {weight: data.draw(st.integers(0, 5)) for weight in weights} for site in sites}
    samples = {site: data.draw(st.integers(1, 5000)) for site in sites}
    dense, head, written = {weight: np.zeros(shape) for weight, shape in weights.items()}, None, None
    for round_ in (1, 2):
        steps = {site: data.draw(st.integers(1, 100)) for site in sites}
        fleet = Fleet(weights, ranks, samples, {HEAD: (3, 10)}, round=round_, steps=steps)
        before = load(written) if written else {}
        _, written = run(fleet.round_input(written))
        after = load(written)

        for weight in weights:
            trained = [site for site in sites if ranks[site][weight]]
            increments = [_increment(fleet, site, weight, before) for site in trained]
            dense[weight] = dense[weight] + (_fednova(trained, samples, steps, increments) if trained else 0)
            found = product(after, weight) if trained else 0
            np.testing.assert_allclose(found, dense[weight], atol=1e-6 * max(1.0, float(np.linalg.norm(dense[weight]))))
        start = np.zeros((3, 10)) if head is None else head
        step = _fednova(sites, samples, steps, [fleet.tensors(site)[HEAD] - start for site in sites])
        rate = _fednova(sites, samples, steps, [np.ones(1) for _ in sites]) if head is None else 1
        head = start + step / rate
        np.testing.assert_allclose(after[HEAD], head, atol=1e-6 * float(np.linalg.norm(head)))


def _increment(fleet: Fleet, site: str, weight: str, before: dict[str, np.ndarray]) -> np.ndarray:
    rank, scale = fleet.ranks[site][weight], fleet.plan().plans[site].scale(weight)
    start = product(before, weight, rank) if f"base_model.model.{weight}.lora_A.weight" in before else 0
    return scale * product(fleet.tensors(site), weight) - start


def _fednova(sites: list[str], samples: dict[str, int], steps: dict[str, int], increments: list[np.ndarray]) -> np.ndarray:
    total = sum(samples[site] for site in sites)
    effective = sum(samples[site] / total * steps[site] for site in sites)
    per_step = sum(samples[site] / total / steps[site] for site in sites)
    effective = min(effective, MAX_SERVER_RATE / per_step)
    return effective * sum(samples[site] / total * one / steps[site] for site, one in zip(sites, increments, strict=True))


def test_a_warm_up_counts_by_its_learning_rate(fleet: Fleet) -> None:
    uneven = replace(fleet, steps={"alpha": 9, "beta": 4, "gamma": 1})

    result, _ = run(uneven.round_input(), replace(EXACT, warmup_steps=4))

    weights = {"alpha": 100 / (2.5 + 5), "beta": 30 / 2.5, "gamma": 7 / 0.25}
    assert result.commit is not None
    assert {one.site: one.share for one in result.commit.contributions} == {
        site: pytest.approx(weight / sum(weights.values())) for site, weight in weights.items()
    }


@pytest.mark.parametrize(("taken", "counted"), [(33, 33), (20, 20), (13, 13), (5, 13), (1, 13)])
def test_a_site_that_was_cut_short_counts_with_no_fewer_steps_than_the_slowest_plan_has(fleet: Fleet, taken: int, counted: int) -> None:
    whole = replace(fleet, steps={"alpha": 70, "beta": 33, "gamma": 13}).round_input()
    one = whole.candidates["beta"]
    cut = replace(one, result=AdmittedUpdate(one.result.model_copy(update={"steps": taken, "samples": taken})))

    result, _ = run(replace(whole, candidates={**whole.candidates, "beta": cut}))

    weights = {"alpha": 100 / 70, "beta": 30 / counted, "gamma": 7 / 13}
    assert result.commit is not None
    assert [one.steps for one in result.commit.contributions] == [70, taken, 13]
    assert {one.site: one.share for one in result.commit.contributions} == {
        site: pytest.approx(weight / sum(weights.values())) for site, weight in weights.items()
    }


def test_a_round_that_an_earlier_version_planned_counts_the_samples_trained_on(fleet: Fleet) -> None:
    uneven = replace(fleet, steps={"alpha": 6, "beta": 3})
    round_input = uneven.round_input()
    plan = round_input.plan.model_copy(update={"samples": {}})

    result, _ = run(replace(round_input, plan=plan), replace(EXACT, normalization=by_data))

    assert result.commit is not None
    assert [one.share for one in result.commit.contributions] == [0.6, 0.3, 0.1]


def test_by_data_more_steps_are_a_louder_vote_only_through_the_increment(fleet: Fleet) -> None:
    uneven = replace(fleet, steps={"alpha": 9, "beta": 4, "gamma": 1})

    result, _ = run(uneven.round_input(), replace(EXACT, normalization=by_data))

    assert result.commit is not None
    assert [round(one.share, 4) for one in result.commit.contributions] == [0.7299, 0.219, 0.0511]


def test_the_commit_says_what_was_learned_and_by_whom(fleet: Fleet) -> None:
    _, first = run(fleet.round_input())
    this = replace(fleet.next_round(), steps={"alpha": 3})

    result, second = run(this.round_input(first))

    commit, before, after = result.commit, load(first), load(second)
    assert commit is not None
    changes = {weight: product(after, weight) - product(before, weight) for weight in fleet.weights}
    assert commit.learned == {weight: pytest.approx(np.linalg.norm(change), rel=1e-5) for weight, change in changes.items()}
    for one in commit.contributions:
        trained = [weight for weight in fleet.weights if fleet.ranks[one.site].get(weight)]
        own = np.concatenate([_increment(this, one.site, weight, before).ravel() for weight in trained])
        whole = np.concatenate([changes[weight].ravel() for weight in trained])
        assert one.norm == pytest.approx(np.linalg.norm(own), rel=1e-5)
        assert one.alignment == pytest.approx(own @ whole / np.linalg.norm(own) / np.linalg.norm(whole), rel=1e-5)
        assert (one.steps, one.trained_samples) == ((3, 3) if one.site == "alpha" else (1, 1))


def test_the_commit_names_the_sites_that_moved_each_weight_most_with_their_shares(fleet: Fleet) -> None:
    _, first = run(fleet.round_input())
    this = fleet.next_round()

    result, second = run(this.round_input(first))

    assert result.commit is not None
    before, after = load(first), load(second)
    for weight in fleet.weights:
        change = (product(after, weight) - product(before, weight)).ravel()
        trained = [site for site in fleet.ranks if fleet.ranks[site].get(weight)]
        along = {site: max(0.0, fleet.samples[site] * _increment(this, site, weight, before).ravel() @ change) for site in trained}
        shares = {site: pytest.approx(part / sum(along.values()), rel=1e-4) for site, part in along.items() if part > 0}
        assert result.commit.learned_by[weight] == shares


def test_no_more_than_three_sites_are_named_for_a_weight() -> None:
    sites = tuple(SiteWeight(site=name, rank=1, share=share) for name, share in zip("abcde", (0.1, 0.3, 0.2, 0.25, 0.15), strict=True))
    updates = WeightUpdates(weight="q", d_out=2, d_in=2, sites=sites, global_rank=1)

    named = learned_by(updates, WeightIncrements(1.0, {}, {"a": 1.0, "b": 1.0, "c": -5.0, "d": 2.0, "e": 4.0}))

    assert named == {"e": pytest.approx(0.4), "d": pytest.approx(1 / 3), "b": pytest.approx(0.2)}
    assert learned_by(updates, WeightIncrements(0.0, {}, dict.fromkeys("abcde", 0.0))) == {}


def test_a_commit_of_an_earlier_version_names_no_site(fleet: Fleet) -> None:
    commit = run(fleet.round_input())[0].commit
    assert commit is not None
    older = {key: value for key, value in json.loads(commit.to_json()).items() if key != "learnedBy"}

    assert RoundCommit.model_validate(older).learned_by == {}


def test_head_tensors_are_averaged_by_samples(fleet: Fleet) -> None:
    _, written = run(fleet.round_input())

    mean = np.average([fleet.tensors(site)[HEAD].astype(float) for site in fleet.ranks], axis=0, weights=list(fleet.samples.values()))
    np.testing.assert_allclose(load(written)[HEAD], mean, rtol=1e-6)


def test_the_commit_records_the_adapter_and_its_contributions(fleet: Fleet) -> None:
    round_input = fleet.round_input()
    result, written = run(round_input, replace(EXACT, max_rank=3))

    commit = result.commit
    assert commit is not None
    assert (commit.round, commit.method, commit.head) == (1, "Exact", fleet.head)
    assert commit.adapter.size == len(written)
    assert commit.adapter.sha256 == hashlib.sha256(written).hexdigest()
    assert commit.ranks == {"layer.0.q": 3, "layer.0.v": 3}
    assert [(c.site, c.samples, round(c.share, 4)) for c in commit.contributions] == [
        ("alpha", 100, 0.7299),
        ("beta", 30, 0.219),
        ("gamma", 7, 0.0511),
    ]
    assert all(c.sha256 == round_input.candidates[c.site].result.adapter.sha256 for c in commit.contributions)
    assert 0 < commit.truncated_energy["layer.0.q"] < 1
    assert commit.bytes_read == sum(candidate.source.size for candidate in round_input.candidates.values())


@settings(derandomize=True, deadline=None, max_examples=10)
@given(st.permutations(["alpha", "beta", "gamma"]))
def test_the_bytes_do_not_depend_on_the_order_of_sites(fleet: Fleet, order: list[str]) -> None:
    round_input = fleet.round_input()
    permuted = replace(round_input, candidates={site: round_input.candidates[site] for site in order})

    assert run(permuted) == run(round_input)


def test_a_refused_update_costs_its_site_the_round_and_nothing_else(fleet: Fleet) -> None:
    round_input = fleet.round_input()
    invalid = fleet.candidate("beta", fleet.tensors("beta") | {HEAD: np.full((3, 10), np.nan, np.float32)})
    others = {site: fleet.ranks[site] for site in ("alpha", "gamma")}
    without = Fleet(weights=fleet.weights, ranks=others, samples=fleet.samples, head=fleet.head)

    result, written = run(replace(round_input, candidates={**round_input.candidates, "beta": invalid}))

    assert result.commit is not None
    assert result.commit.refused == {"beta": result.verdicts["beta"]}
    assert result.verdicts["beta"].reason == "NotFinite"
    assert [site for site, verdict in result.verdicts.items() if verdict.accepted] == ["alpha", "gamma"]
    assert written == run(without.round_input())[1]


def test_too_few_accepted_updates_write_nothing(fleet: Fleet) -> None:
    round_input = replace(fleet, needed=3).round_input()
    two = {site: round_input.candidates[site] for site in ("alpha", "beta")}

    result, written = run(replace(round_input, candidates=two))

    assert result.commit is None
    assert written == b""
    assert result.verdicts.keys() == {"alpha", "beta"}


def test_a_weight_that_no_site_trained_keeps_its_global_factors(fleet: Fleet) -> None:
    _, first = run(fleet.round_input())
    round_input = fleet.next_round().round_input(first)

    result, second = run(replace(round_input, candidates={"beta": round_input.candidates["beta"]}))

    assert result.commit is not None
    assert result.commit.ranks["layer.0.v"] == 5
    for key in (f"base_model.model.layer.0.v.lora_{x}.weight" for x in "AB"):
        np.testing.assert_array_equal(load(second)[key], load(first)[key])


def test_a_weight_that_no_site_has_trained_yet_has_rank_0_and_no_tensors(fleet: Fleet) -> None:
    round_input = fleet.round_input()

    result, written = run(replace(round_input, candidates={"beta": round_input.candidates["beta"]}))

    assert result.commit is not None
    assert result.commit.ranks == {"layer.0.q": 2, "layer.0.v": 0}
    assert not [key for key in load(written) if "layer.0.v" in key]


def test_a_method_that_cannot_aggregate_the_updates_writes_nothing(fleet: Fleet) -> None:
    sink = io.BytesIO()

    with pytest.raises(CannotAggregateError, match=r"layer\.0\.q has alpha 4, beta 2, gamma 1"):
        aggregate_round(fleet.round_input(), AggregationConfig(method="FedIT", max_rank=64), sink)

    assert sink.getvalue() == b""


def test_the_adapter_of_an_inexact_method_has_scale_1(fleet: Fleet) -> None:
    round_input = fleet.round_input()

    _, written = run(
        replace(round_input, candidates={"alpha": round_input.candidates["alpha"]}), AggregationConfig(method="ZeroPad", max_rank=64)
    )

    expected = fleet.plan().plans["alpha"].scale("layer.0.q") * product(fleet.tensors("alpha"), "layer.0.q")
    np.testing.assert_allclose(product(load(written), "layer.0.q"), expected, rtol=1e-5, atol=1e-5)


def test_each_tensor_is_read_by_the_gate_for_its_length_by_the_aggregation_and_to_measure_the_increments(fleet: Fleet) -> None:
    round_input = fleet.round_input()

    run(round_input, DEFAULTS)

    for candidate in round_input.candidates.values():
        entries = open_tensors(candidate.source).entries
        reads = {key: candidate.source.reads[entry.offset, entry.length] for key, entry in entries.items()}
        assert reads.pop(HEAD) == 3
        assert set(reads.values()) == {4}


def test_one_weight_of_all_sites_is_aggregated_before_the_next_is_read(fleet: Fleet) -> None:
    round_input = fleet.round_input()
    log: list[Any] = []
    names = {}
    for site, candidate in round_input.candidates.items():
        names |= {(site, e.offset): key.rsplit(".lora_", 1)[0] for key, e in open_tensors(candidate.source).entries.items()}
        candidate.source.log = log

    run(round_input)

    sites = {id(candidate.source): site for site, candidate in round_input.candidates.items()}
    read = [(sites[id(source)], offset) for source, offset, _ in log]
    tensors = [key for site in fleet.ranks for key in fleet.tensors(site)]
    aggregated = [names[key] for key in read if key in names][-2 * len(tensors) + tensors.count(HEAD) :]
    assert [name for name, _ in groupby(aggregated)] == [HEAD, "base_model.model.layer.0.q", "base_model.model.layer.0.v"]


@pytest.mark.parametrize("method", ["Exact", "FedIT", "ZeroPad"])
def test_memory_does_not_grow_with_the_number_of_weights(method: str) -> None:
    def peak(count: int) -> int:
        weights = {f"layer.{i}.q": (200, 200) for i in range(count)}
        sites = ["one", "two", "three", "four"]
        round_input = Fleet(weights, dict.fromkeys(sites, dict.fromkeys(weights, 8)), dict.fromkeys(sites, 1)).round_input()
        tracemalloc.start()
        aggregate_round(round_input, AggregationConfig(method=method, max_rank=8), io.BufferedWriter(_NullWriter()))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    assert peak(24) < 1.5 * peak(4)


class _NullWriter(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:
        return memoryview(data).nbytes


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_no_byte_and_no_verdict(threads: int) -> None:
    weights = {f"layer.{i}.q": (90, 70) for i in range(9)}
    sites = ["one", "two", "three", "four"]
    round_input = Fleet(weights, dict.fromkeys(sites, dict.fromkeys(weights, 8)), dict.fromkeys(sites, 3)).round_input()

    sequential, parallel = (
        run(round_input, AggregationConfig(method="Exact", max_rank=8)),
        run(round_input, AggregationConfig(method="Exact", max_rank=8, threads=threads)),
    )

    assert parallel == sequential

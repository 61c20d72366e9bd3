"""The server's optimizers against the dense formulas of their paper, with momentum and second moments kept."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import load
from toy_rounds import HEAD, Fleet, RecordingSource

from fedpipe_operator.aggregation import AggregationConfig, aggregate_round
from fedpipe_operator.aggregation.server_optimizers import second_moment, weights
from fedpipe_operator.api import Clipping
from fedpipe_operator.api.aggregation import OptimizerType, ServerOptimizer
from fedpipe_operator.rounds.records import NO_STATE, RoundCommit

PLAIN: Final = AggregationConfig(method="Exact", max_rank=64, max_site_weight=1.0, clipping=Clipping.NONE)
OPTIMIZERS: Final = {
    "FedAvg": ServerOptimizer(learning_rate=0.7),
    "FedAvgM": ServerOptimizer(type="FedAvgM", momentum=0.9, learning_rate=1),
    "FedAdam": ServerOptimizer(type="FedAdam", learning_rate=0.1),
    "FedAdamW": ServerOptimizer(type="FedAdamW", learning_rate=0.3, beta1=0.8, weight_decay=0.2),
    "FedYogi": ServerOptimizer(type="FedYogi", learning_rate=0.2, beta2=0.5, tau=0.05),
}
TOY: Final = Fleet(
    weights={"q": (12, 10), "v": (10, 14)},
    ranks={"alpha": {"q": 3, "v": 2}, "beta": {"q": 1, "v": 4}, "gamma": {"q": 2}},
    samples={"alpha": 100, "beta": 30, "gamma": 70},
    head={HEAD: (3, 10)},
)


@dataclass
class Server:
    """A federation's server: what it has written, round by round."""

    config: AggregationConfig
    adapters: list[bytes] = field(default_factory=list)
    commits: list[RoundCommit] = field(default_factory=list)

    def round(self, fleet: Fleet, **config: Any) -> dict[str, np.ndarray]:
        """Aggregate this round of the fleet; the new global adapter's tensors."""
        previous = self.adapters[-1] if self.adapters else None
        last = self.commits[-1].optimizer if self.commits else None
        given = replace(
            fleet.round_input(previous),
            before=RecordingSource(self.adapters[-2]) if len(self.adapters) > 1 else None,
            state=last or NO_STATE,
        )
        sink = io.BytesIO()
        result = aggregate_round(given, replace(self.config, **config), sink)
        assert result.commit is not None
        self.adapters.append(sink.getvalue())
        self.commits.append(RoundCommit.model_validate_json(result.commit.to_json()))
        return load(self.adapters[-1])


@dataclass
class DenseOptimizer:
    """One tensor's optimizer as in the paper: m and v are kept."""

    optimizer: ServerOptimizer
    value: Any
    m: Any = 0.0
    v: float | None = None

    def step(self, delta: np.ndarray) -> None:
        """Move by a round's pseudo-gradient."""
        o = self.optimizer
        if o.type in (OptimizerType.FEDAVG, OptimizerType.FEDAVGM):
            momentum = o.momentum or 0.0
            self.m = momentum * self.m + delta
            self.value = self.value + (o.learning_rate or 1.0) * self.m
            return
        beta1, beta2 = (default if given is None else given for given, default in ((o.beta1, 0.9), (o.beta2, 0.99)))
        tau, decay = o.tau or 1e-3, o.weight_decay or 0.0
        square = float(np.mean(delta**2))
        v = tau**2 if self.v is None else self.v
        self.v = v - (1 - beta2) * square * np.sign(v - square) if o.type is OptimizerType.FEDYOGI else beta2 * v + (1 - beta2) * square
        self.m = beta1 * self.m + (1 - beta1) * delta
        assert o.learning_rate is not None
        self.value = self.value - o.learning_rate * decay * self.value + o.learning_rate * self.m / (math.sqrt(self.v) + tau)


def product(tensors: Mapping[str, np.ndarray], weight: str, rank: int | None = None) -> Any:
    keys = [f"base_model.model.{weight}.lora_{x}.weight" for x in "AB"]
    if keys[0] not in tensors:
        return 0.0
    a, b = (tensors[key].astype(np.float64) for key in keys)
    return b[:, :rank] @ a[:rank]


def increments(fleet: Fleet, weight: str, start: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By site that trained the weight."""
    trained = {site: ranks[weight] for site, ranks in fleet.ranks.items() if ranks.get(weight)}
    scale = {site: fleet.plan().plans[site].scale(weight) for site in trained}
    return {site: scale[site] * product(fleet.tensors(site), weight) - product(start, weight, rank) for site, rank in trained.items()}


def mean(fleet: Fleet, of_sites: Mapping[str, np.ndarray]) -> np.ndarray:
    total = sum(fleet.samples[site] for site in of_sites)
    return sum((fleet.samples[site] / total * one for site, one in of_sites.items()), start=np.zeros(()))


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-6 * float(np.linalg.norm(expected)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_rounds_equal_the_dense_formula(name: str) -> None:
    optimizer, fleet = OPTIMIZERS[name], TOY
    server = Server(replace(PLAIN, optimizer=optimizer))
    dense = {weight: DenseOptimizer(optimizer, np.zeros(shape)) for weight, shape in fleet.weights.items()}
    head: DenseOptimizer | None = None
    start: dict[str, np.ndarray] = {}
    for _ in range(5):
        after = server.round(fleet)
        for weight, one in dense.items():
            one.step(mean(fleet, increments(fleet, weight, start)))
            assert_equal(product(after, weight), one.value)
        heads = mean(fleet, {site: fleet.tensors(site)[HEAD].astype(np.float64) for site in fleet.ranks})
        if head is None:
            head = DenseOptimizer(optimizer, heads)
        else:
            head.step(heads - start[HEAD].astype(np.float64))
        assert_equal(after[HEAD], head.value)
        start, fleet = after, fleet.next_round()


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.data())
def test_momentum_of_any_fleet_equals_the_dense_formula(data: st.DataObject) -> None:
    sites = ["one", "two", "three"][: data.draw(st.integers(1, 3))]
    ranks = {site: {weight: data.draw(st.integers(1, 5)) for weight in TOY.weights} for site in sites}
    fleet = replace(TOY, ranks=ranks, samples={site: data.draw(st.integers(1, 5000)) for site in sites}, head={})
    optimizer = ServerOptimizer(type="FedAvgM", momentum=data.draw(st.floats(0, 0.95)), learning_rate=data.draw(st.floats(0.1, 2)))
    server = Server(replace(PLAIN, optimizer=optimizer))
    dense = {weight: DenseOptimizer(optimizer, np.zeros(shape)) for weight, shape in fleet.weights.items()}
    start: dict[str, np.ndarray] = {}
    for _ in range(3):
        after = server.round(fleet)
        for weight, one in dense.items():
            one.step(mean(fleet, increments(fleet, weight, start)))
            assert_equal(product(after, weight), one.value)
        start, fleet = after, fleet.next_round()


def test_by_default_the_adapter_moves_by_the_increment_and_the_commit_has_no_state() -> None:
    plain, explicit = Server(PLAIN), Server(replace(PLAIN, optimizer=ServerOptimizer(type="FedAvg", learning_rate=1)))
    for fleet in (TOY, TOY.next_round(), TOY.next_round().next_round()):
        plain.round(fleet)
        explicit.round(fleet)

    assert plain.adapters == explicit.adapters
    assert [commit.optimizer for commit in plain.commits] == [None, None, None]


def test_a_weight_that_no_site_trained_stands_still_and_keeps_its_second_moment() -> None:
    server = Server(replace(PLAIN, optimizer=OPTIMIZERS["FedAdam"]))
    first = server.round(TOY)
    without = replace(TOY.next_round(), ranks={site: {"q": ranks["q"]} for site, ranks in TOY.ranks.items()})
    second = server.round(without)

    np.testing.assert_array_equal(product(second, "v"), product(first, "v"))
    states = [commit.optimizer for commit in server.commits]
    assert all(states)
    assert len({state.second_moments["v"] for state in states if state}) == 1
    assert len({state.second_moments["q"] for state in states if state}) == 2


def test_after_a_round_in_which_it_stood_still_a_weight_has_no_momentum() -> None:
    server, fleet = Server(replace(PLAIN, optimizer=OPTIMIZERS["FedAvgM"])), replace(TOY, head={})
    server.round(fleet)
    still = server.round(replace(fleet.next_round(), ranks={site: {"q": ranks["q"]} for site, ranks in TOY.ranks.items()}))
    third = fleet.next_round().next_round()
    after = server.round(third)

    assert_equal(product(after, "v"), product(still, "v") + mean(third, increments(third, "v", still)))


def test_an_optimizer_that_is_chosen_later_begins_with_what_the_last_round_moved() -> None:
    server, fleet = Server(PLAIN), replace(TOY, head={})
    first = server.round(fleet)
    fleet = fleet.next_round()
    second = server.round(fleet)
    fleet = fleet.next_round()
    third = server.round(fleet, optimizer=ServerOptimizer(type="FedAvgM", momentum=0.5, learning_rate=1))

    for weight in fleet.weights:
        moved = product(second, weight) - product(first, weight)
        assert_equal(product(third, weight), product(second, weight) + 0.5 * moved + mean(fleet, increments(fleet, weight, second)))


def test_another_learning_rate_changes_no_momentum() -> None:
    """m is what the increments add up to, and not what the adapter moved by."""
    server, fleet = Server(PLAIN), replace(TOY, head={})
    first = server.round(fleet, optimizer=ServerOptimizer(type="FedAvgM", momentum=0.5, learning_rate=0.2))
    fleet = fleet.next_round()
    second = server.round(fleet, optimizer=ServerOptimizer(type="FedAvgM", momentum=0.5, learning_rate=1))

    for weight in fleet.weights:
        m = product(first, weight) / 0.2
        assert_equal(product(second, weight), product(first, weight) + 0.5 * m + mean(fleet, increments(fleet, weight, first)))


def test_the_global_rank_is_never_above_the_largest_allowed_and_what_is_lost_is_told() -> None:
    server, fleet = Server(replace(PLAIN, max_rank=4, optimizer=OPTIMIZERS["FedAvgM"])), TOY
    for _ in range(3):
        server.round(fleet)
        fleet = fleet.next_round()

    assert {rank for commit in server.commits for rank in commit.ranks.values()} == {4}
    assert all(0 < server.commits[-1].truncated_energy[weight] < 1 for weight in fleet.weights)


@pytest.mark.parametrize(("method", "rule"), [("FedIT", "Mean"), ("ZeroPad", "Mean"), ("Exact", "Median")])
def test_whatever_the_updates_are_aggregated_by_the_adapter_has_momentum(method: str, rule: str) -> None:
    fleet = replace(TOY, ranks={site: {"q": 2, "v": 2} for site in TOY.ranks}, head={})
    config = replace(PLAIN, method=method, rule=rule, malicious_sites=1)
    server, plain = Server(replace(config, optimizer=OPTIMIZERS["FedAvgM"])), Server(config)
    first, second = (server.round(one) for one in (fleet, fleet.next_round()))
    plain.adapters, plain.commits = server.adapters[:1], server.commits[:1]
    averaged = plain.round(fleet.next_round())

    for weight in fleet.weights:
        assert_equal(product(second, weight), product(averaged, weight) + 0.9 * product(first, weight))


def test_what_is_said_of_the_sites_is_said_of_the_increment_and_not_of_the_momentum() -> None:
    plain, moving = Server(PLAIN), Server(replace(PLAIN, optimizer=OPTIMIZERS["FedAvgM"]))
    for server in (plain, moving):
        server.round(TOY)

    assert moving.commits[0].contributions == plain.commits[0].contributions
    assert moving.commits[0].learned == plain.commits[0].learned


def test_momentum_alone_keeps_the_length_of_a_round_s_step_in_the_long_run() -> None:
    """With the learning rate left out, equal increments move the adapter by one increment a round in the end."""
    optimizer, before, current = ServerOptimizer(type="FedAvgM", momentum=0.8), 0.0, 0.0
    for _ in range(60):
        summed = weights(optimizer, None, optimizer, None)
        before, current = current, summed.aggregated * (current + 1) + summed.current * current + summed.before * before

    assert current - before == pytest.approx(1, rel=1e-4)


@given(v=st.floats(1e-12, 1e3), square=st.floats(0, 1e3))
def test_yogi_s_second_moment_is_positive_and_changes_by_the_square_at_most(v: float, square: float) -> None:
    new = second_moment(ServerOptimizer(type="FedYogi"), v, square)

    assert new is not None
    assert 0 < new <= max(v, square) * (1 + 1e-9)
    assert abs(new - v) <= 0.01 * square * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": "FedAvg", "momentum": 0.5}, "momentum belongs to FedAvgM: leave it out, or change the type"),
        ({"type": "FedAvgM", "beta1": 0.5}, "beta1 belongs to FedAdam, FedAdamW, FedYogi"),
        ({"type": "FedAvgM", "beta2": 0.5}, "beta2 belongs to FedAdam, FedAdamW, FedYogi"),
        ({"tau": 0.5}, "tau belongs to FedAdam, FedAdamW, FedYogi"),
        ({"type": "FedAdam", "weightDecay": 0.5}, "weightDecay belongs to FedAdamW"),
        ({"type": "FedAvgM", "momentum": 1}, "less than 1"),
        ({"type": "FedAdam", "tau": 0}, "greater than 0"),
    ],
)
def test_a_field_of_another_type_is_refused_in_a_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ServerOptimizer.model_validate(fields)

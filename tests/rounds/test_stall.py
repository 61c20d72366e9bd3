"""A run that stalls trains deeper: from the evaluations in the store to the plans of the next round."""

from pathlib import Path
from typing import Any, Final

import pytest
import trainer_results
from site_profiles import GIB, SMOLLM2, speeds
from stand_in_runs import World, a_run
from stand_in_runs import a_site as a_site_spec
from trainer_results import a_profile, an_evaluation, good_trainer

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import EvaluateTask, Plan, ProfileTask, WeightShape

SLOWER: Final = {"site-1": 1, "site-2": 2, "site-4": 4, "site-8": 8}
"""How much slower than the fastest each site is; it has as much less memory."""
WEIGHTS: Final = {f"layer.{layer}.q": (8, 6) for layer in range(SMOLLM2.layers)}
BASE: Final = SMOLLM2.model_copy(
    update={
        "weights": tuple(WeightShape(name=name, d_out=8, d_in=6, layer=layer) for layer, name in enumerate(WEIGHTS)),
        "head": {"base_model.model.classifier.weight": (-1, 8)},
    }
)
"""A real model's cost, with small weights, so that updates are small."""
ROUNDS: Final = 6
STALL: Final = 5
"""The first plan after the evaluations of the base and of rounds 1 to 3."""


def trainer_with(losses: list[float]) -> Any:
    """The stand-in trainer of unequal sites, whose evaluations have these losses by round, the base's first."""

    def train(task: Any, folder: Path) -> Any:
        match task:
            case ProfileTask():
                factor = SLOWER[task.site]
                site = {"memory_bytes": 16 * GIB // factor, "throughput": speeds(4000.0 / factor), "train_samples": 500}
                return a_profile(task, base=BASE, mean_tokens=64.0, longest_tokens=128, **site)
            case EvaluateTask():
                return an_evaluation(task, loss=losses[task.round])
        return good_trainer(task, folder)

    return train


def plans_of(folder: Path, losses: list[float]) -> dict[int, dict[str, Plan]]:
    """The plans by round and site of a run whose evaluations have these losses."""
    sites = [a_site_spec(site, capacity={"memory": f"{16 // factor}Gi"}) for site, factor in SLOWER.items()]
    planning = {"bits": [4, 8, 16], "ranks": [4, 8], "batchSizes": [4, 16]}
    run = a_run(sites, rounds={"count": ROUNDS, "deadline": "30m"}, planning=planning, training={"epochs": 3})
    world = World(run, folder, trainer_with(losses))
    world.settle()
    stored = (required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in range(1, ROUNDS + 1))
    return {plan.round: plan.plans for plan in stored}


def depths(plans: dict[str, Plan]) -> dict[str, int]:
    return {site: plan.trained_layers for site, plan in plans.items()}


@pytest.fixture(autouse=True)
def deep_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in trainer's updates have the weights of the deep model."""
    monkeypatch.setattr(trainer_results, "WEIGHTS", WEIGHTS)


def test_a_run_whose_loss_stands_still_trains_more_layers_at_every_site_that_can(tmp_path: Path) -> None:
    by_round = plans_of(tmp_path, [2.0] * (ROUNDS + 1))

    before, after = depths(by_round[STALL - 1]), depths(by_round[STALL])
    assert depths(by_round[1]) == before
    assert all(after[site] >= before[site] for site in SLOWER)
    assert any(before[site] < SMOLLM2.layers == after[site] for site in SLOWER)
    assert depths(by_round[STALL + 1]) == after
    deeper = [site for site in SLOWER if after[site] > before[site]]
    assert all(any("since the improvement of the run stalled" in why for why in by_round[STALL][site].why) for site in deeper)


def test_a_run_whose_loss_falls_trains_no_more_layers(tmp_path: Path) -> None:
    by_round = plans_of(tmp_path, [2.0 * 0.8**round_ for round_ in range(ROUNDS + 1)])

    assert all(depths(plans) == depths(by_round[1]) for plans in by_round.values())

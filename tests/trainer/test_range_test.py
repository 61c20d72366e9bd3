"""The range test of learning rates: losses that differ by the rate alone, rates that diverge, and the limit on its time."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import make_runtime

from fedpipe_trainer.contract import CausalLM, Hyperparameters, RangeTest, RangeTestResult, SequenceClassification
from fedpipe_trainer.data import encode
from fedpipe_trainer.errors import Terminated
from fedpipe_trainer.model import facts, load, read_tokenizer
from fedpipe_trainer.profiling import range_test
from fedpipe_trainer.profiling.range_test import measure_rates, search
from fedpipe_trainer.profiling.subject import Subject

Toy = Callable[[str], Path]
CLASSES = SequenceClassification(labels=("left", "right"), max_length=24, text="a", label="b")
CAUSAL = CausalLM(prompt="{a}", response="{b}", max_length=24)
HUGE = 1.0


def a_test(*rates: float, **changes: Any) -> RangeTest:
    fields: dict[str, Any] = {"steps": 6, "batch_size": 8, "validation_samples": 16, "seconds": 1e6, "hyperparameters": Hyperparameters()}
    return RangeTest(learning_rates=rates, **(fields | changes))


def measured(folder: Path, test: RangeTest, objective: Any = CLASSES, *, runtime: Any = None, seed: int = 1) -> RangeTestResult:
    rows = [{"a": f"turn {('left', 'right')[i % 2]} at {i}", "b": ("left", "right")[i % 2]} for i in range(64)]
    examples = encode(rows, objective, read_tokenizer(folder))
    subject = Subject(load(folder, 32, objective), objective, facts(folder, objective, ()).weights, examples[16:], rank=4, seed=seed)
    return measure_rates(test, subject, examples[:16], micro_batch=4, runtime=runtime or make_runtime(folder.parent / "task"))


def losses(result: RangeTestResult) -> dict[float, float | None]:
    assert result.problem == ""
    return {one.learning_rate: one.loss for one in result.rates}


@pytest.fixture
def bert(toy: Toy) -> Path:
    return toy("bert")


def test_every_rate_starts_from_the_same_adapter(bert: Path) -> None:
    together = measured(bert, a_test(1e-9, 1e-2, 3e-2))
    alone = measured(bert, a_test(3e-2))

    assert together.loss_before == alone.loss_before
    assert losses(together)[3e-2] == losses(alone)[3e-2]
    assert losses(together)[1e-9] == pytest.approx(together.loss_before, rel=1e-4)
    assert together.samples == 16


def test_a_rate_that_trains_has_a_lower_loss_than_one_that_does_not(toy: Toy) -> None:
    result = losses(measured(toy("llama"), a_test(1e-9, 3e-2, steps=20), CAUSAL))

    assert result[3e-2] < 0.95 * result[1e-9]  # type: ignore[operator]  # neither diverged


def test_the_same_seed_gives_the_same_losses_also_with_dropout(bert: Path) -> None:
    test = a_test(1e-3, 1e-2, 3e-2, hyperparameters=Hyperparameters(dropout=0.3))
    first = measured(bert, test)
    torch.rand(7)

    assert measured(bert, test) == first
    assert measured(bert, test, seed=2) != first


def test_a_site_with_one_label_has_nothing_to_learn_and_no_word(bert: Path) -> None:
    objective = SequenceClassification(labels=("left",), max_length=24, text="a", label="b")
    examples = encode([{"a": f"turn {i}", "b": "left"} for i in range(64)], objective, read_tokenizer(bert))
    subject = Subject(load(bert, 32, objective), objective, facts(bert, objective, ()).weights, examples[16:], rank=4, seed=1)

    result = measure_rates(a_test(1e-2), subject, examples[:16], micro_batch=4, runtime=make_runtime(bert.parent / "task"))

    assert result.rates == ()
    assert "there is nothing to learn: every validation row has the same label" in result.problem


def test_a_rate_that_diverges_has_no_loss(toy: Toy) -> None:
    """Steps of 1e30 in weights of 32 bits: the first forward pass after it is not finite."""
    test = a_test(1e-2, HUGE, hyperparameters=Hyperparameters(max_grad_norm=1000), alpha=1e38)

    assert losses(measured(toy("llama"), test, CAUSAL))[HUGE] is None


def test_the_scale_of_the_adapters_is_the_plans(bert: Path) -> None:
    small, large = (losses(measured(bert, a_test(1e-2, alpha=alpha)))[1e-2] for alpha in (1.0, 64.0))

    assert small != large


def test_a_proximal_term_holds_every_rate_near_the_same_start(bert: Path) -> None:
    free, held, held_alone = (
        measured(bert, a_test(*rates, hyperparameters=Hyperparameters(proximal_mu=mu)))
        for rates, mu in (((1e-2, 3e-2), 0.0), ((1e-2, 3e-2), 10.0), ((3e-2,), 10.0))
    )

    assert losses(held)[3e-2] != losses(free)[3e-2]
    assert losses(held)[3e-2] == losses(held_alone)[3e-2]


def test_the_base_is_left_as_it_was(bert: Path) -> None:
    base = load(bert, 32, CLASSES)
    before = {name: value.clone() for name, value in base.model.state_dict().items() if name not in base.head}
    examples = encode([{"a": "left", "b": "left"}] * 8, CLASSES, base.tokenizer)
    subject = Subject(base, CLASSES, facts(bert, CLASSES, ()).weights, examples, rank=4, seed=1)

    measure_rates(a_test(1e-2), subject, examples, micro_batch=4, runtime=make_runtime(bert.parent / "task"))

    after = base.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not [name for name, value in base.model.named_parameters() if value.requires_grad or value.grad is not None]


# --- the order of the rates

GRID = (1.0, 2.0, 3.0, 4.0, 5.0)


def searched(by_rate: Mapping[float, float | None], grid: Sequence[float] = GRID) -> list[float]:
    """The rates in the order in which they were tried."""
    tried: list[float] = []

    def loss_after(rate: float) -> float | None:
        tried.append(rate)
        return by_rate[rate]

    assert search(grid, loss_after) == {rate: by_rate[rate] for rate in tried}
    return tried


@pytest.mark.parametrize(
    ("by_rate", "tried"),
    [
        ((5.0, 4.0, 3.0, 2.0, 1.0), [3, 4, 5]),
        ((9.0, 8.0, 3.0, 2.0, 2.5), [3, 4, 5]),
        ((9.0, 8.0, 3.0, 2.0, None), [3, 4, 5]),
        ((1.0, 2.0, 3.0, 4.0, 5.0), [3, 4, 2, 1]),
        ((2.0, 2.0, 1.0, 2.0, 2.0), [3, 4, 2]),
        ((1.0, 1.0, 1.0, 1.0, 1.0), [3, 4, 5]),
        ((3.0, 2.0, 1.0, None, None), [3, 4, 2]),
        ((1.0, 2.0, None, None, None), [3, 2, 1]),
        ((None, None, None, None, None), [3, 2, 1]),
    ],
)
def test_the_search_follows_the_falling_loss_from_the_middle_until_it_gets_worse(
    by_rate: Sequence[float | None], tried: list[float]
) -> None:
    assert searched(dict(zip(GRID, by_rate, strict=True))) == tried


@pytest.mark.parametrize(("grid", "tried"), [((1.0,), [1]), ((1.0, 2.0), [2, 1])])
def test_short_grids_are_tried_whole(grid: tuple[float, ...], tried: list[float]) -> None:
    assert searched({1.0: 1.0, 2.0: 2.0}, grid) == tried


# --- time


def a_runtime_that_ticks(folder: Path) -> Any:
    """Each reading of its clock is a second later."""
    runtime = make_runtime(folder.parent / "task")
    ticks = itertools.count()
    runtime.elapsed_seconds = lambda: float(next(ticks))  # type: ignore[method-assign]  # the test controls the time
    return runtime


def test_rates_that_are_not_reached_in_time_are_left_out(bert: Path) -> None:
    """The clock is read once before each step of 6 a rate: after 9 s the middle rate is done, and half of the one above it."""
    result = measured(bert, a_test(1e-3, 1e-2, 3e-2, seconds=9), runtime=a_runtime_that_ticks(bert))

    assert list(losses(result)) == [1e-2]


def test_without_time_for_a_single_rate_there_is_a_sentence_that_says_what_to_do(bert: Path) -> None:
    result = measured(bert, a_test(1e-2, seconds=2), runtime=a_runtime_that_ticks(bert))

    assert (result.rates, result.loss_before) == ((), None)
    assert result.problem == (
        "no learning rate was tested: not even one rate could be tried in 2 s, the small share of rounds.deadline that the test may take: "
        "raise rounds.deadline, or write training.learningRate"
    )


def test_a_test_ends_on_a_request_to_stop(bert: Path) -> None:
    runtime = make_runtime(bert.parent / "task")
    runtime.stop_requested = lambda: True

    with pytest.raises(Terminated):
        measured(bert, a_test(1e-2), runtime=runtime)


# --- problems


def test_running_out_of_memory_is_a_problem_that_says_what_to_do(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(range_test, "compute_gradients", no_memory)

    assert "out of memory: allow a smaller batch in planning.batchSizes" in measured(bert, a_test(1e-2)).problem


def test_another_failure_is_not_hidden(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(range_test, "compute_gradients", broken)

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        measured(bert, a_test(1e-2))


def test_a_base_whose_loss_is_not_finite_is_a_problem(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_test, "mean_loss", lambda *_, **__: (float("nan"), 1))

    assert "the validation loss of the untrained model is not finite" in measured(bert, a_test(1e-2)).problem

"""Batches of like lengths: every example once an epoch, the same batches in every epoch, and little padding."""

from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_trainer.contract import CausalLM, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import Example, batch_of_step, collate, compose_batches, count_padding, count_tokens, micro_batches, shuffled

CLASSES: Final = SequenceClassification(text="a", label="b", labels=("x", "y"), max_length=256)


def examples_of(lengths: list[int]) -> list[Example]:
    return [Example([1] * length, [0]) for length in lengths]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(1, 40), st.integers(0, 9))
def test_an_epoch_has_every_example_once_in_batches_of_nearly_equal_size(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = compose_batches(lengths, batch_size, seed)
    sizes = {len(batch) for batch in batches}

    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-len(lengths) // batch_size)


def test_every_epoch_and_every_round_has_the_same_batches_in_another_order() -> None:
    batches = compose_batches([10 * i % 97 + 1 for i in range(64)], 8, seed=1)

    first, second, other_round = ([batch_of_step(batches, step, seed) for step in steps] for steps, seed in EPOCHS)

    assert sorted(first) == sorted(second) == sorted(other_round) == sorted(batches)
    assert first != second != other_round != first


EPOCHS: Final = ((range(8), 5), (range(8, 16), 5), (range(8), 6))


def test_chance_decides_which_examples_of_like_length_share_a_batch() -> None:
    lengths = [30] * 40

    assert compose_batches(lengths, 8, seed=1) == compose_batches(lengths, 8, seed=1)
    assert set(compose_batches(lengths, 8, seed=1)).isdisjoint(compose_batches(lengths, 8, seed=2))


def test_short_and_long_examples_come_in_random_order() -> None:
    lengths = list(range(1, 257))
    batches = compose_batches(lengths, 8, seed=0)
    longest = [max(lengths[i] for i in batch_of_step(batches, step, seed=3)) for step in range(len(batches))]

    ascents = sum(a < b for a, b in pairwise(longest))

    assert len(longest) / 4 < ascents < 3 * len(longest) / 4


def test_the_batches_are_the_same_on_every_machine_and_version() -> None:
    batches = compose_batches([5, 30, 7, 31, 6, 29, 8], 3, seed=0)

    assert batches == BATCHES
    assert [batch_of_step(batches, step, seed=0) for step in range(6)] == [batches[i] for i in (0, 1, 2, 1, 0, 2)]
    assert shuffled(10, "0/0") == (7, 0, 9, 1, 5, 3, 4, 8, 2, 6)


BATCHES: Final = ((2, 0), (6, 4), (3, 1, 5))


@pytest.mark.parametrize(("shape", "max_length"), [("uniform", 256), ("truncated", 128), ("short", 64)])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_at_most_a_tenth_of_the_tokens_are_padding(shape: str, max_length: int, batch_size: int) -> None:
    shortest, longest = {"uniform": (20, 256), "truncated": (30, 400), "short": (40, 90)}[shape]
    lengths = [min(max_length, shortest + i * (longest - shortest) // 399) for i in shuffled(400, "rows")]
    objective = CLASSES.model_copy(update={"max_length": max_length})
    batches = compose_batches(lengths, batch_size, seed=0)

    padding = sum(count_padding(examples_of([lengths[i] for i in batch]), objective, batch_size) for batch in batches)

    assert padding <= 0.1 * (padding + sum(lengths))


def test_micro_batches_are_of_like_length_too_and_the_longest_comes_first() -> None:
    lengths = [9, 40, 17, 33, 25, 1, 12, 20]
    (batch,) = compose_batches(lengths, 8, seed=0)

    parts = [[len(example.input_ids) for example in part] for part in micro_batches(examples_of([lengths[i] for i in batch]), 3)]

    assert parts == [[40, 33, 25], [20, 17, 12], [9, 1]]


@pytest.mark.parametrize(
    ("objective", "labels"),
    [
        (CLASSES, 1),
        (CausalLM(prompt="{a}", response="{b}", max_length=20), None),
        (Seq2SeqLM(prompt="{a}", response="{b}", max_length=20), 7),
    ],
)
@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_padding_is_counted_as_it_is_computed(
    objective: SequenceClassification | CausalLM | Seq2SeqLM, labels: int | None, micro_batch: int
) -> None:
    examples = [Example([1] * n, [1] * (labels or n)) for n in (19, 11, 8, 3, 2)]
    batches = [collate(part, objective, pad_id=0) for part in micro_batches(examples, micro_batch)]
    computed = sum(batch["input_ids"].numel() for batch in batches)
    if isinstance(objective, Seq2SeqLM):
        computed += sum(batch["labels"].numel() for batch in batches)

    assert count_tokens(examples, objective) + count_padding(examples, objective, micro_batch) == computed

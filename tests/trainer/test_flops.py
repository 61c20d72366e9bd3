"""The FLOP of a training, held to what torch counts while it runs one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from families import FAMILIES, MORE, make_family
from torch.utils.flop_counter import FlopCounterMode
from toy_training import CAUSAL, Q0, V1

from fedpipe_trainer.adapters import AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import Objective, Preference, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import Example
from fedpipe_trainer.flops import Work, training_flop, work_of, work_of_lengths
from fedpipe_trainer.model import Base, load, target_weights
from fedpipe_trainer.parallel import divide
from fedpipe_trainer.steps import accumulate_gradients, training_mode

Toy = Callable[[str], Path]
CLASSES = SequenceClassification(text="a", label="b", labels=("left", "right"), max_length=24)
SEQ2SEQ = Seq2SeqLM(prompt="{a}", response="{b}", max_length=24)
TOYS = [("llama", CAUSAL), ("gpt2", CAUSAL), ("llama", CLASSES), ("bert", CLASSES), ("mpnet", CLASSES), ("t5", SEQ2SEQ)]
NAMES = [*FAMILIES, *(MORE if os.environ.get("FEDPIPE_ALL_FAMILIES") else ("phi", "falcon", "electra"))]
"""The nightly form has all (`test_architectures.py`); of the others, those whose layers are built in ways of their own."""
UNKNOWN = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deberta", "deberta-v2"}
"""Mixtures of experts, and attention with products that depend on the batch."""
TOLERANCE = 0.05
VALUES = ("v", "v_proj", "value", "c_attn")
RANK = 4


def ranks_from(base: Base, lowest: int, names: tuple[str, ...] = ()) -> dict[str, int]:
    """Of the default weights of this layer and those above it; `names`: of these only."""
    weights = target_weights(base.model, base.model.config.model_type, ())
    return {one.name: RANK for one in weights if one.layer >= lowest and (not names or one.name.rpartition(".")[2] in names)}


def examples_of(objective: Objective, lengths: list[int]) -> list[Example]:
    """Samples of these lengths; targets of an encoder-decoder are eight tokens shorter."""
    targets = {"CausalLM": 0, "Seq2SeqLM": 8}
    is_head = isinstance(objective, SequenceClassification)
    return [Example([40] * n, [1] if is_head else [40] * (n - targets[objective.type])) for n in lengths]


def counted(base: Base, objective: Objective, ranks: dict[str, int], examples: list[Example]) -> int:
    """What torch counts in the forward and backward passes of a batch of all of them."""
    spec = AdapterSpec(ranks=ranks, scale=dict.fromkeys(ranks, 1.0).__getitem__)
    lowest = min(one.layer for one in target_weights(base.model, base.model.config.model_type, ()) if one.name in ranks)
    with (
        attach_adapters(base, spec, AdapterTensors(), 0) as adapters,
        training_mode(adapters.model, checkpointing=False, lowest_layer=lowest),
        FlopCounterMode(display=False) as counter,
    ):
        accumulate_gradients(divide(examples, len(examples), 1, 0), objective, base, model=adapters.model, targets=len(examples))
    return counter.get_total_flops()


@pytest.mark.parametrize("names", [(), VALUES], ids=["all", "values"])
@pytest.mark.parametrize("lowest", [0, 1])
@pytest.mark.parametrize(("name", "objective"), TOYS, ids=[f"{name}-{one.type}" for name, one in TOYS])
def test_the_flop_of_a_training_are_those_that_torch_counts(
    toy: Toy, name: str, objective: Objective, lowest: int, names: tuple[str, ...]
) -> None:
    base = load(toy(name), 32, objective, "eager")
    ranks, examples = ranks_from(base, lowest, names), examples_of(objective, [24] * 4)

    expected = counted(base, objective, ranks, examples)

    assert training_flop(base, objective, ranks, work_of(examples, objective)) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_the_flop_that_torch_counts_or_none(tmp_path: Path, name: str) -> None:
    make_family(name, tmp_path)
    objective = (FAMILIES | MORE)[name].objective
    base = load(tmp_path, 32, objective, "eager")
    ranks, examples = ranks_from(base, 0), examples_of(objective, [16] * 4)

    found = training_flop(base, objective, ranks, work_of(examples, objective))

    assert (found is None) == (name in UNKNOWN)
    if found is not None:
        assert found == pytest.approx(counted(base, objective, ranks, examples), rel=TOLERANCE)


@pytest.mark.parametrize("lowest", [2, 3])
def test_below_the_decoder_nothing_goes_back_if_it_alone_is_trained(toy: Toy, lowest: int) -> None:
    base = load(toy("t5"), 32, SEQ2SEQ, "eager")
    ranks, examples = ranks_from(base, lowest), examples_of(SEQ2SEQ, [24] * 4)

    expected = counted(base, SEQ2SEQ, ranks, examples)

    assert training_flop(base, SEQ2SEQ, ranks, work_of(examples, SEQ2SEQ)) == pytest.approx(expected, rel=TOLERANCE)


def test_padding_is_counted_only_as_part_of_the_lengths_that_are_given(toy: Toy) -> None:
    base = load(toy("llama"), 32, CAUSAL, "eager")
    ranks, examples = ranks_from(base, 0), examples_of(CAUSAL, [24, 8, 8, 8])

    computed = counted(base, CAUSAL, ranks, examples)
    useful = training_flop(base, CAUSAL, ranks, work_of(examples, CAUSAL))

    assert training_flop(base, CAUSAL, ranks, work_of_lengths([24] * 4)) == pytest.approx(computed, rel=TOLERANCE)
    assert useful is not None
    assert useful == pytest.approx(computed / 2, rel=0.1), "half of the tokens are padding; attention has less of them than linear layers"


def test_activations_from_a_cache_cost_nothing(toy: Toy) -> None:
    base = load(toy("llama"), 32, CAUSAL, "eager")
    work, everything = work_of_lengths([24] * 4), training_flop(base, CAUSAL, {V1: RANK}, work_of_lengths([24] * 4))

    half, nothing = (training_flop(base, CAUSAL, {V1: RANK}, work, computed=share) for share in (0.5, 0.0))

    assert everything is not None
    assert half is not None
    assert nothing is not None
    below = sum(2 * one.d_in * one.d_out for one in target_weights(base.model, "llama", ("all-linear",)) if one.layer == 0)
    assert everything - nothing == pytest.approx(work.inputs * below + 4 * 32 * work.input_pairs)
    assert half == pytest.approx((everything + nothing) / 2)


def test_twice_the_samples_are_twice_the_flop(toy: Toy) -> None:
    base, once = load(toy("llama"), 32, CAUSAL), work_of_lengths([24, 9])
    flop, twice = (training_flop(base, CAUSAL, {Q0: RANK}, work) for work in (once, once + once))

    assert flop is not None
    assert twice == pytest.approx(2 * flop)
    assert Work() + once == once


def test_the_flop_of_pairs_are_not_known(toy: Toy) -> None:
    """The reference's pass may be read from a cache."""
    base = load(toy("llama"), 32, CAUSAL)

    assert training_flop(base, Preference(prompt_column="p", beta=0.1), {Q0: RANK}, work_of_lengths([24])) is None

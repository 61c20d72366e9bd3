"""Adapters on a base: scales, the frozen residual, initial factors, invalid adapters, and the base after they are removed."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpipe_trainer.adapters import (
    FROZEN_ADAPTER,
    AdapterSpec,
    AdapterTensors,
    Factors,
    attach_adapters,
    read_global_adapter,
    write_tensors,
)
from fedpipe_trainer.adapters.lora import init_lora_a
from fedpipe_trainer.contract import Bits, CausalLM, FailureReason, Forecast, Plan, Scaling, SequenceClassification
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import Base, load

Toy = Callable[[str], Path]
CAUSAL = CausalLM(prompt="{a}", response="{b}")
CLASSES = SequenceClassification(labels=("a", "b", "c"))
Q0, O1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"
IDS = torch.arange(1, 13).reshape(2, 6)


@pytest.fixture
def base(toy: Toy) -> Base:
    return load(toy("llama"), 32, CAUSAL)


def adapter_of(rank: int, weights: tuple[str, ...] = (Q0, O1), size: int = 32) -> AdapterTensors:
    generator = torch.Generator().manual_seed(rank)
    factors = [Factors(torch.randn(rank, size, generator=generator), torch.randn(size, rank, generator=generator)) for _ in weights]
    return AdapterTensors(dict(zip(weights, factors, strict=True)))


def spec(ranks: Mapping[str, int], scale: float = 4.0) -> AdapterSpec:
    return AdapterSpec(ranks, scale=lambda _weight: scale)


def logits(base: Base) -> Tensor:
    with torch.no_grad():
        values: Tensor = base.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return values


@pytest.mark.parametrize("scaling", list(Scaling))
def test_peft_scales_each_weight_as_the_plan_says(base: Base, scaling: Scaling) -> None:
    forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    plan = Plan(bits=32, batch_size=1, steps=1, ranks={Q0: 2, O1: 8}, scaling=scaling, alpha=12.0, forecast=forecast)

    with attach_adapters(base, AdapterSpec(plan.ranks, plan.scale), AdapterTensors(), seed=0):
        layers = {name: module for name, module in base.model.named_modules() if isinstance(module, LoraLayer)}
        assert {name: layer.scaling["trained"] for name, layer in layers.items()} == pytest.approx({Q0: plan.scale(Q0), O1: plan.scale(O1)})
        assert {name: layer.r["trained"] for name, layer in layers.items()} == {Q0: 2, O1: 8}


@pytest.mark.parametrize("rank", [0, 1, 3, 5, 9])
@pytest.mark.parametrize("bits", [4, 16, 32])
def test_a_site_of_any_rank_starts_from_the_complete_global_model(toy: Toy, rank: int, bits: Bits) -> None:
    base = load(toy("llama"), bits, CAUSAL)
    adapter = adapter_of(5)
    with attach_adapters(base, FROZEN_ADAPTER, adapter, seed=0):
        expected = logits(base)
    with attach_adapters(base, spec({Q0: rank, O1: rank}), adapter, seed=0):
        actual = logits(base)

    assert not torch.allclose(expected, logits(base), atol=0.05)
    assert torch.allclose(actual, expected, atol=0.05 if bits < 32 else 1e-4)


def test_the_global_adapter_is_added_as_the_product_of_its_factors(base: Base) -> None:
    adapter = adapter_of(3)
    with attach_adapters(base, FROZEN_ADAPTER, adapter, seed=0):
        actual = logits(base)
    with torch.no_grad():
        for weight, factors in adapter.weights.items():
            base.model.get_submodule(weight).get_parameter("weight").add_(factors.b @ factors.a)

    assert torch.allclose(actual, logits(base), atol=1e-4)


def test_only_the_components_of_the_sites_rank_are_trained(base: Base) -> None:
    adapter = adapter_of(5)

    with attach_adapters(base, spec({Q0: 2, O1: 0}), adapter, seed=0) as adapters:
        trainable = {name for name, parameter in base.model.named_parameters() if parameter.requires_grad}
        a, b = (adapters.trainable[f"base_model.model.{Q0}.lora_{which}.weight"] for which in "AB")
        assert list(adapters.trainable) == [f"base_model.model.{Q0}.lora_{which}.weight" for which in "AB"]
        assert trainable == {f"{Q0}.lora_{which}.trained.weight" for which in "AB"}
        assert torch.equal(a, adapter.weights[Q0].a[:2])
        assert torch.allclose(4.0 * b, adapter.weights[Q0].b[:, :2])


def test_a_rank_above_the_global_rank_adds_initial_rows_that_change_nothing_yet(base: Base) -> None:
    adapter = adapter_of(2)

    with attach_adapters(base, spec({Q0: 4}), adapter, seed=3) as adapters:
        a, b = (adapters.trainable[f"base_model.model.{Q0}.lora_{which}.weight"] for which in "AB")
        assert torch.equal(a[2:], init_lora_a(Q0, 4, 32, seed=3)[2:])
        assert b[:, 2:].abs().max() == 0
        assert b[:, :2].abs().min() > 0


def test_initial_factors_of_all_ranks_share_their_first_rows() -> None:
    assert torch.equal(init_lora_a(Q0, 3, 32, seed=1), init_lora_a(Q0, 64, 32, seed=1)[:3])
    assert not torch.equal(init_lora_a(Q0, 3, 32, seed=1), init_lora_a(O1, 3, 32, seed=1))
    assert not torch.equal(init_lora_a(Q0, 3, 32, seed=1), init_lora_a(Q0, 3, 32, seed=2))


def test_initial_factors_have_the_distribution_of_peft() -> None:
    drawn, expected = init_lora_a(Q0, 64, 100, seed=0), torch.empty(64, 100)
    torch.nn.init.kaiming_uniform_(expected, a=5**0.5)

    assert drawn.abs().max() <= 0.1
    assert drawn.std() == pytest.approx(float(expected.std()), rel=0.05)


def test_a_head_starts_equal_at_every_site_and_later_from_the_global_head(toy: Toy) -> None:
    heads = []
    for start in (AdapterTensors(), AdapterTensors(), AdapterTensors(head={"score.weight": torch.full((3, 32), 0.5)})):
        torch.manual_seed(len(heads))
        base = load(toy("llama"), 16, CLASSES)
        with attach_adapters(base, FROZEN_ADAPTER, start, seed=7) as adapters:
            heads.append(adapters.trainable["base_model.model.score.weight"].detach().clone())

    assert torch.equal(heads[0], heads[1])
    assert heads[0].std() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(heads[2], torch.full((3, 32), 0.5))


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_the_base_is_unchanged_after_the_adapters_are_removed(toy: Toy, bits: Bits) -> None:
    base = load(toy("llama"), bits, CAUSAL)
    names, before = [name for name, _ in base.model.named_modules()], logits(base)

    for rank in (2, 3):
        with attach_adapters(base, spec({Q0: rank}), adapter_of(4), seed=0):
            pass

    assert [name for name, _ in base.model.named_modules()] == names
    assert torch.equal(logits(base), before)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_the_adapters_are_removed_after_a_failure(base: Base) -> None:
    names = [name for name, _ in base.model.named_modules()]

    with pytest.raises(ValueError, match="stop"), attach_adapters(base, spec({Q0: 2}), AdapterTensors(), seed=0):
        raise ValueError("stop")

    assert [name for name, _ in base.model.named_modules()] == names


def test_the_adapter_of_a_conv1d_is_transposed(toy: Toy) -> None:
    base = load(toy("gpt2"), 32, CAUSAL)
    weight = "transformer.h.0.attn.c_attn"
    generator = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(3, 32, generator=generator), torch.randn(96, 3, generator=generator))
    with attach_adapters(base, spec({weight: 1}), AdapterTensors({weight: factors}), seed=0):
        actual = logits(base)
    with torch.no_grad():
        base.model.get_submodule(weight).get_parameter("weight").add_((factors.b @ factors.a).T)

    assert torch.allclose(actual, logits(base), atol=1e-4)


def test_a_rank_for_a_weight_that_the_model_does_not_have_is_refused_and_the_message_names_it(base: Base) -> None:
    with (
        pytest.raises(TaskFailed, match=r"'model\.layers\.9\.q'") as failed,
        attach_adapters(base, spec({"model.layers.9.q": 2}), AdapterTensors(), 0),
    ):
        pass

    assert failed.value.reason is FailureReason.BAD_TASK


def wire(adapter: AdapterTensors) -> dict[str, Tensor]:
    tensors = {}
    for weight, factors in adapter.weights.items():
        tensors[f"base_model.model.{weight}.lora_A.weight"] = factors.a
        tensors[f"base_model.model.{weight}.lora_B.weight"] = factors.b
    return tensors


def test_a_global_adapter_is_read_as_it_was_written(base: Base, tmp_path: Path) -> None:
    written = wire(adapter_of(3))
    write_tensors(written, tmp_path / "global.safetensors")

    adapter = read_global_adapter(tmp_path / "global.safetensors", base.model, base.head)

    assert set(adapter.weights) == {Q0, O1}
    assert all(torch.equal(written[key], value) for key, value in wire(adapter).items())


A0, B0 = (f"base_model.model.{Q0}.lora_{which}.weight" for which in "AB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model.model.nothing": torch.zeros(1)}, "base_model.model.nothing belongs to no parameter of this model"),
        ({"base_model.model.model.norm.lora_A.weight": torch.zeros(1, 32)}, "model.norm.lora_A.weight belongs to no linear layer"),
        ({A0: torch.zeros(3, 31)}, "q_proj.lora_A.weight and its lora_B have shapes"),
        ({B0: torch.zeros(32, 2)}, "q_proj.lora_A.weight and its lora_B have shapes"),
        ({B0: None}, "has no base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"),
        ({A0: None}, "q_proj.lora_B.weight belongs to no parameter of this model"),
        ({A0: torch.full((3, 32), torch.nan)}, "q_proj.lora_A.weight is not float32 or has values that are not finite"),
        ({A0: torch.zeros(3, 32, dtype=torch.float16)}, "q_proj.lora_A.weight is not float32"),
        ({A0: torch.zeros(3, 32, dtype=torch.bfloat16)}, "q_proj.lora_A.weight is not float32"),
    ],
)
def test_a_global_adapter_that_does_not_fit_the_model_is_refused_and_the_message_names_the_key(
    base: Base, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    tensors = {key: value for key, value in (wire(adapter_of(3)) | change).items() if value is not None}
    save_file(tensors, tmp_path / "global.safetensors")

    with pytest.raises(TaskFailed, match=message):
        read_global_adapter(tmp_path / "global.safetensors", base.model, base.head)


def test_a_global_adapter_without_the_head_is_refused(toy: Toy, tmp_path: Path) -> None:
    base = load(toy("llama"), 32, CLASSES)
    save_file(wire(adapter_of(3)), tmp_path / "global.safetensors")

    with pytest.raises(TaskFailed, match=r"has no base_model\.model\.score\.weight"):
        read_global_adapter(tmp_path / "global.safetensors", base.model, base.head)


def test_a_file_that_is_not_an_adapter_is_refused(base: Base, tmp_path: Path) -> None:
    (tmp_path / "global.safetensors").write_bytes(b"no")

    with pytest.raises(TaskFailed, match="cannot be read"):
        read_global_adapter(tmp_path / "global.safetensors", base.model, base.head)


def test_equal_tensors_are_equal_bytes(tmp_path: Path) -> None:
    tensors = wire(adapter_of(3))
    write_tensors(tensors, tmp_path / "one")
    write_tensors(dict(reversed(tensors.items())), tmp_path / "two")

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert list(load_file(tmp_path / "one")) == sorted(tensors)

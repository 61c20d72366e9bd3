"""Adapters on a base: scales, the frozen tail, fresh factors, what is refused, and the base as it was afterwards."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpipe_trainer.adapters import NO_ADAPTER_SPEC, Factors, GlobalUpdate, Site, attached, read_update, write_tensors
from fedpipe_trainer.adapters.lora import fresh_factor
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


def update_of(rank: int, weights: tuple[str, ...] = (Q0, O1), size: int = 32) -> GlobalUpdate:
    generator = torch.Generator().manual_seed(rank)
    draw = [Factors(torch.randn(rank, size, generator=generator), torch.randn(size, rank, generator=generator)) for _ in weights]
    return GlobalUpdate(dict(zip(weights, draw, strict=True)))


def site(ranks: Mapping[str, int], scale: float = 4.0) -> Site:
    return Site(ranks, scale=lambda _weight: scale)


def logits(base: Base) -> Tensor:
    with torch.no_grad():
        found: Tensor = base.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


@pytest.mark.parametrize("scaling", list(Scaling))
def test_peft_scales_each_weight_as_the_plan_says(base: Base, scaling: Scaling) -> None:
    forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    plan = Plan(bits=32, batch_size=1, steps=1, ranks={Q0: 2, O1: 8}, scaling=scaling, alpha=12.0, forecast=forecast)

    with attached(base, Site(plan.ranks, plan.scale), GlobalUpdate(), seed=0):
        layers = {name: module for name, module in base.model.named_modules() if isinstance(module, LoraLayer)}
        assert {name: layer.scaling["site"] for name, layer in layers.items()} == pytest.approx({Q0: plan.scale(Q0), O1: plan.scale(O1)})
        assert {name: layer.r["site"] for name, layer in layers.items()} == {Q0: 2, O1: 8}


@pytest.mark.parametrize("rank", [0, 1, 3, 5, 9])
@pytest.mark.parametrize("bits", [4, 16, 32])
def test_a_site_of_any_rank_starts_from_the_whole_global_model(toy: Toy, rank: int, bits: Bits) -> None:
    base = load(toy("llama"), bits, CAUSAL)
    update = update_of(5)
    with attached(base, NO_ADAPTER_SPEC, update, seed=0):
        wanted = logits(base)
    with attached(base, site({Q0: rank, O1: rank}), update, seed=0):
        found = logits(base)

    assert not torch.allclose(wanted, logits(base), atol=0.05)
    assert torch.allclose(found, wanted, atol=0.05 if bits < 32 else 1e-4)


def test_the_global_update_is_added_as_the_product_of_its_factors(base: Base) -> None:
    update = update_of(3)
    with attached(base, NO_ADAPTER_SPEC, update, seed=0):
        found = logits(base)
    with torch.no_grad():
        for weight, factors in update.weights.items():
            base.model.get_submodule(weight).get_parameter("weight").add_(factors.b @ factors.a)

    assert torch.allclose(found, logits(base), atol=1e-4)


def test_only_the_sites_own_components_are_trained(base: Base) -> None:
    update = update_of(5)

    with attached(base, site({Q0: 2, O1: 0}), update, seed=0) as adapters:
        trained = {name for name, parameter in base.model.named_parameters() if parameter.requires_grad}
        a, b = (adapters.trained[f"base_model.model.{Q0}.lora_{which}.weight"] for which in "AB")
        assert list(adapters.trained) == [f"base_model.model.{Q0}.lora_{which}.weight" for which in "AB"]
        assert trained == {f"{Q0}.lora_{which}.site.weight" for which in "AB"}
        assert torch.equal(a, update.weights[Q0].a[:2])
        assert torch.allclose(4.0 * b, update.weights[Q0].b[:, :2])


def test_a_rank_above_the_global_one_adds_fresh_rows_that_change_nothing_yet(base: Base) -> None:
    update = update_of(2)

    with attached(base, site({Q0: 4}), update, seed=3) as adapters:
        a, b = (adapters.trained[f"base_model.model.{Q0}.lora_{which}.weight"] for which in "AB")
        assert torch.equal(a[2:], fresh_factor(Q0, 4, 32, seed=3)[2:])
        assert b[:, 2:].abs().max() == 0
        assert b[:, :2].abs().min() > 0


def test_fresh_factors_share_their_first_rows_whatever_the_rank() -> None:
    assert torch.equal(fresh_factor(Q0, 3, 32, seed=1), fresh_factor(Q0, 64, 32, seed=1)[:3])
    assert not torch.equal(fresh_factor(Q0, 3, 32, seed=1), fresh_factor(O1, 3, 32, seed=1))
    assert not torch.equal(fresh_factor(Q0, 3, 32, seed=1), fresh_factor(Q0, 3, 32, seed=2))


def test_fresh_factors_are_spread_as_peft_draws_them() -> None:
    drawn, wanted = fresh_factor(Q0, 64, 100, seed=0), torch.empty(64, 100)
    torch.nn.init.kaiming_uniform_(wanted, a=5**0.5)

    assert drawn.abs().max() <= 0.1
    assert drawn.std() == pytest.approx(float(wanted.std()), rel=0.05)


def test_a_head_starts_equal_at_every_site_and_from_the_global_one_later(toy: Toy) -> None:
    heads = []
    for start in (GlobalUpdate(), GlobalUpdate(), GlobalUpdate(head={"score.weight": torch.full((3, 32), 0.5)})):
        torch.manual_seed(len(heads))
        base = load(toy("llama"), 16, CLASSES)
        with attached(base, NO_ADAPTER_SPEC, start, seed=7) as adapters:
            heads.append(adapters.trained["base_model.model.score.weight"].detach().clone())

    assert torch.equal(heads[0], heads[1])
    assert heads[0].std() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(heads[2], torch.full((3, 32), 0.5))


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_the_base_is_as_it_was_when_the_adapters_are_off(toy: Toy, bits: Bits) -> None:
    base = load(toy("llama"), bits, CAUSAL)
    names, before = [name for name, _ in base.model.named_modules()], logits(base)

    for rank in (2, 3):
        with attached(base, site({Q0: rank}), update_of(4), seed=0):
            pass

    assert [name for name, _ in base.model.named_modules()] == names
    assert torch.equal(logits(base), before)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_the_adapters_are_off_after_a_failure(base: Base) -> None:
    names = [name for name, _ in base.model.named_modules()]

    with pytest.raises(ValueError, match="stop"), attached(base, site({Q0: 2}), GlobalUpdate(), seed=0):
        raise ValueError("stop")

    assert [name for name, _ in base.model.named_modules()] == names


def test_a_conv1d_takes_the_update_the_right_way_round(toy: Toy) -> None:
    base = load(toy("gpt2"), 32, CAUSAL)
    weight = "transformer.h.0.attn.c_attn"
    generator = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(3, 32, generator=generator), torch.randn(96, 3, generator=generator))
    with attached(base, site({weight: 1}), GlobalUpdate({weight: factors}), seed=0):
        found = logits(base)
    with torch.no_grad():
        base.model.get_submodule(weight).get_parameter("weight").add_((factors.b @ factors.a).T)

    assert torch.allclose(found, logits(base), atol=1e-4)


def test_a_rank_for_a_weight_the_model_does_not_have_is_refused_by_name(base: Base) -> None:
    with (
        pytest.raises(TaskFailed, match=r"'model\.layers\.9\.q'") as failed,
        attached(base, site({"model.layers.9.q": 2}), GlobalUpdate(), 0),
    ):
        pass

    assert failed.value.reason is FailureReason.BAD_TASK


def wire(update: GlobalUpdate) -> dict[str, Tensor]:
    tensors = {}
    for weight, factors in update.weights.items():
        tensors[f"base_model.model.{weight}.lora_A.weight"] = factors.a
        tensors[f"base_model.model.{weight}.lora_B.weight"] = factors.b
    return tensors


def test_a_global_adapter_is_read_as_it_was_written(base: Base, tmp_path: Path) -> None:
    written = wire(update_of(3))
    write_tensors(written, tmp_path / "global.safetensors")

    update = read_update(tmp_path / "global.safetensors", base.model, base.head)

    assert set(update.weights) == {Q0, O1}
    assert all(torch.equal(written[key], value) for key, value in wire(update).items())


A0, B0 = (f"base_model.model.{Q0}.lora_{which}.weight" for which in "AB")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model.model.nothing": torch.zeros(1)}, "base_model.model.nothing is nothing that this model has"),
        ({"base_model.model.model.norm.lora_A.weight": torch.zeros(1, 32)}, "model.norm.lora_A.weight is for no linear layer"),
        ({A0: torch.zeros(3, 31)}, "q_proj.lora_A.weight and its lora_B have shapes"),
        ({B0: torch.zeros(32, 2)}, "q_proj.lora_A.weight and its lora_B have shapes"),
        ({B0: None}, "has no base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"),
        ({A0: None}, "q_proj.lora_B.weight is nothing that this model has"),
        ({A0: torch.full((3, 32), torch.nan)}, "q_proj.lora_A.weight is not finite"),
        ({A0: torch.zeros(3, 32, dtype=torch.float16)}, "q_proj.lora_A.weight is not finite float32"),
    ],
)
def test_a_global_adapter_that_does_not_fit_is_refused_by_key(
    base: Base, tmp_path: Path, change: dict[str, Tensor | None], said: str
) -> None:
    tensors = {key: value for key, value in (wire(update_of(3)) | change).items() if value is not None}
    save_file(tensors, tmp_path / "global.safetensors")

    with pytest.raises(TaskFailed, match=said):
        read_update(tmp_path / "global.safetensors", base.model, base.head)


def test_a_global_adapter_without_the_head_is_refused(toy: Toy, tmp_path: Path) -> None:
    base = load(toy("llama"), 32, CLASSES)
    save_file(wire(update_of(3)), tmp_path / "global.safetensors")

    with pytest.raises(TaskFailed, match=r"has no base_model\.model\.score\.weight"):
        read_update(tmp_path / "global.safetensors", base.model, base.head)


def test_a_file_that_is_no_adapter_is_refused(base: Base, tmp_path: Path) -> None:
    (tmp_path / "global.safetensors").write_bytes(b"no")

    with pytest.raises(TaskFailed, match="cannot be read"):
        read_update(tmp_path / "global.safetensors", base.model, base.head)


def test_equal_tensors_are_equal_bytes(tmp_path: Path) -> None:
    tensors = wire(update_of(3))
    write_tensors(tensors, tmp_path / "one")
    write_tensors(dict(reversed(tensors.items())), tmp_path / "two")

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert list(load_file(tmp_path / "one")) == sorted(tensors)

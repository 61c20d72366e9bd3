"""Modules of the base that are trained whole beside the adapters, against plain PEFT's `modules_to_save`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import run_dry_export, run_export
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from toys import make_toy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    ModernBertConfig,
)

from fedpipe_trainer.adapters import (
    FROZEN_ADAPTER,
    Adapters,
    AdapterSpec,
    AdapterTensors,
    attach_adapters,
    read_global_adapter,
    write_tensors,
)
from fedpipe_trainer.contract import (
    Bits,
    CausalLM,
    FailureReason,
    Forecast,
    GlobalAdapter,
    Hyperparameters,
    Model,
    Plan,
    SequenceClassification,
)
from fedpipe_trainer.data import IGNORED, Example
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import Base, check_depth, facts, load
from fedpipe_trainer.model.stored_in_16_bits import LinearIn16Bits
from fedpipe_trainer.model.whole_modules import lowest_layer_of, whole_parameters
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode
from fedpipe_trainer.transfer import describe

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft itself
Toy = Callable[[str], Path]
CAUSAL = CausalLM(prompt="{a}", response="{b}")
CLASSES = SequenceClassification(labels=("a", "b", "c"))
SAVED = ("embed_tokens", "lm_head")
Q0 = "model.layers.0.self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens.weight"
IDS = torch.arange(1, 13).reshape(2, 6)
EXAMPLES = [Example([*range(at, at + 6)], [IGNORED, *range(at + 1, at + 6)]) for at in (3, 40)]


def load_with(folder: Path, bits: Bits = 32, saved: tuple[str, ...] = SAVED) -> Base:
    return load(folder, bits, CAUSAL, modules_to_save=saved)


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()
    return found


def train(base: Base, adapters: Adapters, steps: int = 3, rate: float = 1e-2) -> None:
    optimizer = make_optimizer(Hyperparameters(), adapters)
    with training_mode(adapters.model, checkpointing=False):
        for _ in range(steps):
            compute_gradients(EXAMPLES, CAUSAL, base, adapters=adapters, micro_batch=2)
            optimizer_step(optimizer, learning_rate=rate, max_grad_norm=1e9)


def spec(rank: int = 2) -> AdapterSpec:
    return AdapterSpec({Q0: rank}, scale=lambda _weight: 1.0)


def plain_peft(folder: Path, saved: tuple[str, ...] = SAVED) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(r=2, lora_alpha=2, target_modules=[Q0], modules_to_save=list(saved), task_type="CAUSAL_LM"))


@pytest.mark.parametrize("saved", [SAVED, ("norm",), ("model.norm",), ("mlp", "layers.1.input_layernorm")], ids=str)
def test_the_tensors_are_those_that_plain_peft_saves(toy: Toy, tmp_path: Path, saved: tuple[str, ...]) -> None:
    plain_peft(toy("llama"), saved).save_pretrained(tmp_path)
    expected = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}

    base = load_with(toy("llama"), saved=saved)
    with attach_adapters(base, spec(), AdapterTensors(), seed=0) as adapters:
        found = {name: tuple(tensor.shape) for name, tensor in adapters.update().items()}

    assert found == expected


def test_training_gives_the_values_that_plain_peft_gives(toy: Toy) -> None:
    base, peft = load_with(toy("llama")), plain_peft(toy("llama"))
    with attach_adapters(base, spec(), AdapterTensors(), seed=0) as adapters:
        theirs = {name: one for name, one in peft.named_parameters() if one.requires_grad}
        a = next(name for name in theirs if "lora_A" in name)
        theirs[a].data.copy_(adapters.trainable[f"base_model.model.{Q0}.lora_A.weight"])
        train(base, adapters)
        optimizer = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.0)
        labels = torch.tensor([one.labels for one in EXAMPLES])
        for _ in range(3):
            optimizer.zero_grad()
            peft(input_ids=torch.tensor([one.input_ids for one in EXAMPLES]), labels=labels).loss.backward()
            optimizer.step()
        assert torch.allclose(logits_of(adapters.model), logits_of(peft), atol=1e-4)
        moved = adapters.update()[EMBEDDING]

    start = AutoModelForCausalLM.from_pretrained(toy("llama")).get_input_embeddings().weight
    theirs_now = next(one for name, one in theirs.items() if "embed_tokens" in name)
    assert torch.allclose(moved, (theirs_now - start).detach(), atol=1e-5)
    assert moved.abs().max() > 1e-3


def test_an_update_is_the_difference_from_the_base_and_restores_the_trained_model(toy: Toy, tmp_path: Path) -> None:
    base = load_with(toy("llama"))
    with attach_adapters(base, spec(), AdapterTensors(), seed=0) as adapters:
        assert not adapters.update()[EMBEDDING].any()
        train(base, adapters)
        expected = logits_of(adapters.model)
        write_tensors(adapters.update(), tmp_path / "global.safetensors")

    start = read_global_adapter(tmp_path / "global.safetensors", base.model, base.head, base.whole)
    with attach_adapters(base, FROZEN_ADAPTER, start, seed=0) as adapters:
        assert torch.allclose(logits_of(adapters.model), expected, atol=1e-5)
    with attach_adapters(base, FROZEN_ADAPTER, AdapterTensors(), seed=0) as adapters:
        assert torch.equal(logits_of(adapters.model), logits_of(load(toy("llama"), 32, CAUSAL).model))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_they_are_kept_in_32_bits_and_trained_at_every_bit_width(toy: Toy, bits: Bits) -> None:
    base = load_with(toy("llama"), bits, ("embed_tokens", "norm", "layers.1.mlp.gate_proj"))

    dtypes = {base.model.get_parameter(name).dtype for name in base.head}
    assert dtypes == {torch.float32}
    unquantised = (torch.nn.Linear, LinearIn16Bits)
    assert type(base.model.lm_head) in unquantised  # the output layer is never quantised
    assert type(base.model.get_submodule("model.layers.1.mlp.gate_proj")) is torch.nn.Linear
    other = type(base.model.get_submodule("model.layers.1.mlp.up_proj"))
    assert other in unquantised if bits == 16 else other.__name__ == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    with attach_adapters(base, spec(), AdapterTensors(), seed=0) as adapters:
        before = logits_of(adapters.model)
        assert torch.allclose(before, logits_of(load(toy("llama"), bits, CAUSAL).model), atol=0.1)
        train(base, adapters)
        update = adapters.update()
        assert all(update[f"base_model.model.{name}"].abs().max() > 0 for name in base.whole)


def test_the_facts_name_their_shapes_and_the_lowest_layer(toy: Toy) -> None:
    found = facts(toy("llama"), CAUSAL, (), modules_to_save=SAVED)

    assert found.whole == {EMBEDDING: (260, 32), "base_model.model.lm_head.weight": (260, 32)}
    assert found.whole_layer == 0
    assert facts(toy("llama"), CAUSAL, (), modules_to_save=("lm_head", "model.norm")).whole_layer == found.layers == 2
    assert facts(toy("llama"), CAUSAL, (), modules_to_save=("layers.1.mlp",)).whole_layer == 1
    assert facts(toy("llama"), CAUSAL, ()).whole == {}


def test_what_is_kept_unquantised_is_not_counted_as_quantised(toy: Toy) -> None:
    without, found = (facts(toy("llama"), CAUSAL, (), modules_to_save=saved) for saved in ((), ("layers.1.mlp",)))

    assert without.quantised_parameters - found.quantised_parameters == 3 * 32 * 64


def test_a_classification_head_is_not_counted_twice(toy: Toy) -> None:
    base = load(toy("bert"), 32, CLASSES, modules_to_save=("classifier", "embeddings.LayerNorm"))

    assert tuple(base.whole) == ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias")
    assert sorted(base.head) == sorted({*base.head})


def refusal(folder: Path, *saved: str, targets: tuple[str, ...] = ()) -> str:
    with pytest.raises(TaskFailed) as failed:
        facts(folder, CAUSAL, targets, modules_to_save=saved)
    assert failed.value.reason is FailureReason.BAD_MODEL
    return failed.value.message


def test_a_name_that_no_module_has_is_refused_with_the_nearest(toy: Toy) -> None:
    assert refusal(toy("llama"), "embed_token") == (
        "no module of this llama model has a name that ends in 'embed_token' (the nearest are model.embed_tokens):"
        " see planning.modulesToSave"
    )
    assert "(it has model.embed_tokens, model.norm, lm_head and others)" in refusal(toy("llama"), "xyz")


def test_what_cannot_be_trained_whole_is_refused_with_the_reason(toy: Toy) -> None:
    assert "wte.weight is the same parameter as lm_head.weight (tied)" in refusal(toy("gpt2"), "wte")
    assert "transformer.wte.weight (tied)" in refusal(toy("gpt2"), "lm_head")
    assert "has no parameters, so that there is nothing in it to train" in refusal(toy("llama"), "act_fn")
    both = refusal(toy("llama"), "layers.0.self_attn")
    assert "model.layers.0.self_attn.q_proj" in both
    assert "would be trained whole and get an adapter, too" in both


def test_a_plan_must_train_from_their_layer_on(toy: Toy) -> None:
    base = load_with(toy("llama"), saved=("embed_tokens",))
    forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    plan = Plan(bits=32, batch_size=1, steps=1, ranks={}, lowest_layer=1, forecast=forecast)

    with pytest.raises(TaskFailed, match=r"lowestLayer is 1, but a module of planning.modulesToSave belongs to layer 0"):
        check_depth(plan, base.model, base.head, tuple(base.whole))
    check_depth(plan, base.model, ("lm_head.weight",), ("lm_head.weight",))


def test_a_norm_of_the_embeddings_is_below_the_layers_and_the_last_one_above_them() -> None:
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(ModernBertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4))

    assert lowest_layer_of(model, whole_parameters(model, ["embeddings.norm"], head=()), 2) == 0
    assert lowest_layer_of(model, whole_parameters(model, ["final_norm"], head=()), 2) == 2


def test_values_of_the_checkpoint_are_read_when_they_are_asked_for_and_not_before(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = load_with(toy("llama")).whole
    monkeypatch.setattr("fedpipe_trainer.model.checkpoint.StoredTensor.read", None)

    assert "lm_head.weight" in stored
    assert "model.norm.weight" not in stored
    assert list(stored) == ["model.embed_tokens.weight", "lm_head.weight"]
    with pytest.raises(KeyError):
        stored["model.norm.weight"]


def test_of_an_encoder_decoder_all_layers_are_trained(toy: Toy) -> None:
    t5 = AutoModelForSeq2SeqLM.from_pretrained(toy("t5"))
    assert lowest_layer_of(t5, whole_parameters(t5, ["decoder.final_layer_norm"], head=()), 4) == 0


@pytest.mark.parametrize(
    ("family", "objective", "auto", "saved"),
    [
        ("llama", CAUSAL, AutoModelForCausalLM, SAVED),
        ("bert", CLASSES, AutoModelForSequenceClassification, ("word_embeddings",)),
    ],
)
def test_an_export_loads_in_plain_peft_and_merged_with_equal_logits(
    tmp_path: Path, family: str, objective: Any, auto: Any, saved: tuple[str, ...]
) -> None:
    make_toy(family, tmp_path / "base")
    model = Model(source=(tmp_path / "base").as_uri(), modules_to_save=saved)
    base = load(tmp_path / "base", 32, objective, modules_to_save=saved)
    weight = facts(tmp_path / "base", objective, ()).weights[0].name
    generator = torch.Generator().manual_seed(0)
    with attach_adapters(base, AdapterSpec({weight: 2}, scale=lambda _weight: 1.0), AdapterTensors(), seed=0) as adapters:
        for parameter in adapters.trainable.values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        expected = logits_of(adapters.model)
        write_tensors(adapters.update(), tmp_path / "global.safetensors")
    artifact = describe(tmp_path / "global.safetensors")
    adapter = GlobalAdapter(url=(tmp_path / "global.safetensors").as_uri(), sha256=artifact.sha256, size=artifact.size)

    result = run_export(tmp_path / "base", objective, tmp_path, model=model, global_adapter=adapter)

    labels = {"num_labels": 3} if objective is CLASSES else {}
    plain = PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base", **labels), str(tmp_path / "adapter"))
    assert torch.allclose(logits_of(plain), expected, atol=1e-5)
    assert "vllm serve" not in (tmp_path / "adapter" / "README.md").read_text()
    assert torch.allclose(logits_of(auto.from_pretrained(tmp_path / "merged")), expected, atol=1e-4)
    assert result.max_logit_difference is not None
    assert result.max_logit_difference < 1e-4


def test_the_dry_export_knows_the_sizes_of_the_files(tmp_path: Path) -> None:
    make_toy("llama", tmp_path / "base")
    model = Model(source=(tmp_path / "base").as_uri(), modules_to_save=("embed_tokens",))

    found = run_dry_export(tmp_path / "base", CAUSAL, tmp_path, model=model)

    sizes = {one.name: one.size for one in found.adapter}
    assert sizes["adapter_model.safetensors"] > 4 * 260 * 32

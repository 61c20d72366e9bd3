"""The families of docs/models.md: which weights get adapters, training, few bits, depth, padding, merging, and PEFT's own loader.

Each on a tiny model with random weights of its real architecture. The nightly form tests the others that have default weights.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import FAMILIES, MORE, Family, make_family
from torch import Tensor
from toys import folders

from fedpipe_trainer.adapters import FROZEN_ADAPTER, Adapters, AdapterSpec, AdapterTensors, attach_adapters, base_name, write_peft_folder
from fedpipe_trainer.adapters.comparison import largest_difference
from fedpipe_trainer.adapters.streaming_merge import plan_merge, write_shard
from fedpipe_trainer.adapters.wire import Factors
from fedpipe_trainer.contract import BaseModelFacts, CausalLM, FailureReason, Hyperparameters, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import IGNORED, Example
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.evaluation import DecodingConfig, evaluate_batches, evaluation_mode, generate_answers
from fedpipe_trainer.model import AUTO_CLASSES, Base, facts, layer_of, layers_of, load
from fedpipe_trainer.model.architecture import count_encoder_layers, head_modules
from fedpipe_trainer.model.limits import count_positions
from fedpipe_trainer.model.skeleton import read_skeleton, write_description
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode

NIGHTLY = bool(os.environ.get("FEDPIPE_ALL_FAMILIES"))
"""The Makefile's target `nightly` sets the variable."""
NAMES = [*FAMILIES, *(MORE if NIGHTLY else ())]
IN_FULL_ONLY = {"deberta"}
"""Its attention multiplies with slices of its weight, which a quantised layer does not have: a profile finds 4 and 8 bits unsupported."""
LENGTHS = (19, 7, 12, 8)
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's model, made once."""
    return folders(tmp_path_factory.mktemp("families"), make_family)


def family(name: str) -> Family:
    return (FAMILIES | MORE)[name]


def examples_of(name: str) -> list[Example]:
    """Examples of different lengths, so that a batch has padding."""
    objective, ids = family(name).objective, [[(7 * at + n) % 200 + 32 for at in range(n)] for n in LENGTHS]
    if isinstance(objective, SequenceClassification):
        return [Example(one, [len(one) % 3]) for one in ids]
    if isinstance(objective, Seq2SeqLM):
        return [Example(one, one[: len(one) // 2]) for one in ids]
    return [Example(one, [IGNORED] * 3 + one[3:]) for one in ids]


def random_adapter(base: Base, found: BaseModelFacts) -> AdapterTensors:
    """A global adapter of rank 3 on every weight that gets one, and a random head."""
    draw = torch.Generator().manual_seed(1)
    weights = {
        one.name: Factors(torch.randn(3, one.d_in, generator=draw) / 8, torch.randn(one.d_out, 3, generator=draw) / 8)
        for one in found.weights
    }
    head = {name: torch.randn(base.model.get_parameter(name).shape, generator=draw) / 8 for name in base.head}
    return AdapterTensors(weights, head)


def gradients_of(base: Base, name: str, adapters: Adapters, *, checkpointing: bool = False, lowest_layer: int = 0) -> dict[str, Tensor]:
    with training_mode(adapters.model, checkpointing=checkpointing, lowest_layer=lowest_layer):
        for module in adapters.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.manual_seed(0)
        compute_gradients(examples_of(name), family(name).objective, base, adapters=adapters, micro_batch=4)
    return {key: one.grad.clone() for key, one in adapters.trainable.items() if one.grad is not None}


def without_dropout(base: Base) -> Base:
    for key, value in vars(base.model.config).items():
        if "dropout" in key and isinstance(value, float):
            setattr(base.model.config, key, 0.0)
    for module in base.model.modules():
        for key, value in vars(module).items():
            if "dropout" in key and isinstance(value, float):
                setattr(module, key, 0.0)
    return base


def spec_of(found: BaseModelFacts, lowest_layer: int = 0) -> AdapterSpec:
    return AdapterSpec({one.name: 2 for one in found.weights if one.layer >= lowest_layer}, scale=lambda _weight: 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_two_steps_and_recomputed_activations_change_no_gradient(folder_of: Callable[[str], Path], name: str) -> None:
    objective = family(name).objective
    base, found = without_dropout(load(folder_of(name), 32, objective)), facts(folder_of(name), objective, ())

    with attach_adapters(base, spec_of(found), random_adapter(base, found), seed=0) as adapters:
        expected = gradients_of(base, name, adapters)
        assert set(expected) == set(adapters.trainable)
        if found.supports_gradient_checkpointing:
            recomputed = gradients_of(base, name, adapters, checkpointing=True)
            assert all(torch.allclose(recomputed[key], one, rtol=1e-3, atol=1e-6) for key, one in expected.items())
        before, optimizer = (
            {key: one.detach().clone() for key, one in adapters.trainable.items()},
            make_optimizer(Hyperparameters(), adapters),
        )
        losses = []
        for _ in range(2):
            with training_mode(adapters.model, checkpointing=False):
                loss, _ = compute_gradients(examples_of(name), objective, base, adapters=adapters, micro_batch=2)
            optimizer_step(optimizer, learning_rate=1e-2, max_grad_norm=1.0)
            losses.append(loss)
        assert losses[1] < losses[0]
        assert all(not torch.equal(one, before[key]) for key, one in adapters.trainable.items())


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_from_a_layer_on_and_nothing_below(folder_of: Callable[[str], Path], name: str) -> None:
    objective = family(name).objective
    base, found = without_dropout(load(folder_of(name), 32, objective)), facts(folder_of(name), objective, ())
    assert len(layers_of(base.model)) == found.layers

    with attach_adapters(base, spec_of(found, 1), random_adapter(base, found), seed=0) as adapters:
        deep = gradients_of(base, name, adapters)
        shallow = gradients_of(base, name, adapters, lowest_layer=1)

    assert shallow.keys() == deep.keys()
    assert all(torch.allclose(shallow[key], one, rtol=1e-3, atol=1e-6) for key, one in deep.items())
    assert {layer_of(one.name, count_encoder_layers(base.model)) for one in found.weights} == set(range(found.layers))


@pytest.mark.parametrize("name", NAMES)
def test_without_bfloat16_arithmetic_16_bits_are_rounded_weights_that_are_computed_with_in_float32(
    folder_of: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, found = family(name).objective, facts(folder_of(name), family(name).objective, ())
    monkeypatch.setattr("fedpipe_trainer.device.computes_bfloat16", lambda _device: False)
    base, rounded = (without_dropout(load(folder_of(name), bits, objective)) for bits in (16, 32))
    for key, one in rounded.model.named_parameters():
        if key not in rounded.head:
            one.data = one.data.bfloat16().float()

    gradients = []
    for each in (base, rounded):
        with attach_adapters(each, spec_of(found), random_adapter(each, found), seed=0) as adapters:
            gradients.append(gradients_of(each, name, adapters))

    assert base.memory_bytes < rounded.memory_bytes
    # Some embeddings are scaled while they are in 16 bits.
    most = 0.02 if name.startswith("gemma") else 1e-4
    assert all((gradients[0][key] - one).norm() <= most * one.norm() for key, one in gradients[1].items())


@pytest.mark.parametrize("name", NAMES if NIGHTLY else ["llama", "bert"])
def test_with_bfloat16_arithmetic_16_bits_are_computed_with_as_they_are(
    folder_of: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, found = family(name).objective, facts(folder_of(name), family(name).objective, ())
    monkeypatch.setattr("fedpipe_trainer.device.computes_bfloat16", lambda _device: True)
    base = load(folder_of(name), 16, objective)

    with attach_adapters(base, spec_of(found), random_adapter(base, found), seed=0) as adapters:
        found_gradients = gradients_of(base, name, adapters)

    assert base.compute_dtype is torch.bfloat16
    assert all(torch.isfinite(one).all() for one in found_gradients.values())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_FULL_ONLY])
def test_it_trains_on_a_quantised_base_after_an_evaluation(folder_of: Callable[[str], Path], name: str, bits: Any) -> None:
    objective = family(name).objective
    base, found = load(folder_of(name), bits, objective), facts(folder_of(name), objective, ())

    with attach_adapters(base, spec_of(found), AdapterTensors(), seed=0) as adapters:
        with evaluation_mode(base.model):
            list(evaluate_batches(base.model, examples_of(name), objective=objective, pad_id=base.pad_id, batch_size=4))
        found_gradients = gradients_of(base, name, adapters)

    assert all(torch.isfinite(one).all() for one in found_gradients.values())
    # The factors B begin at zero, so that they alone have a gradient.
    assert all(one.abs().sum() > 0 for key, one in found_gradients.items() if key.endswith("lora_B.weight"))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_loss_and_no_answer(folder_of: Callable[[str], Path], name: str) -> None:
    objective = family(name).objective
    base = load(folder_of(name), 32, objective)
    examples = examples_of(name)
    with (
        attach_adapters(base, FROZEN_ADAPTER, random_adapter(base, facts(folder_of(name), objective, ())), seed=0),
        evaluation_mode(base.model),
    ):
        losses = [
            sum(one.loss_sum for one in evaluate_batches(base.model, examples, objective=objective, pad_id=base.pad_id, batch_size=size))
            for size in (1, len(examples))
        ]
        answers = [answers_of(base, objective, examples, size) for size in (1, len(examples))]

    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert answers[0] == answers[1]


def answers_of(base: Base, objective: Any, examples: list[Example], batch_size: int) -> list[list[int]]:
    if isinstance(objective, SequenceClassification):
        return []
    decoding = DecodingConfig(
        max_new_tokens=4, min_new_tokens=4, pad_id=base.pad_id, end_ids=(base.tokenizer.eos_token_id,), batch_size=batch_size
    )
    return generate_answers(base.model, [one.input_ids for one in examples], objective, decoding=decoding, before_batch=lambda: None)


def logits_of(model: Any, objective: Any) -> Tensor:
    ids = torch.tensor([[(5 * at) % 200 + 32 for at in range(11)]])
    decoder = {"decoder_input_ids": ids[:, :5]} if isinstance(objective, Seq2SeqLM) else {}
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder).logits
    return logits


def write_merged(base: Path, objective: Any, adapter: AdapterTensors, folder: Path) -> None:
    """Write the merged model as the export does."""
    folder.mkdir()
    skeleton = read_skeleton(base, objective)
    plan = plan_merge(skeleton, weights=adapter.weights, shard_bytes=2**30)
    write_description(skeleton, folder, untied=plan.untied)
    for shard in plan.shards:
        write_shard(shard, skeleton.model, adapter, folder)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
@pytest.mark.parametrize("name", NAMES)
def test_a_merged_model_and_peft_s_own_loader_give_the_logits_of_base_and_adapter(
    folder_of: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    objective = family(name).objective
    base, found = load(folder_of(name), 32, objective), facts(folder_of(name), objective, ())
    adapter = random_adapter(base, found)
    with attach_adapters(base, FROZEN_ADAPTER, AdapterTensors(head=adapter.head), seed=0) as adapters:
        untouched = logits_of(adapters.model, objective)
    with attach_adapters(base, FROZEN_ADAPTER, adapter, seed=0) as adapters:
        expected = logits_of(adapters.model, objective)
    write_peft_folder(
        base.model, head_modules(base.head), adapter, objective, base=base_name(folder_of(name).as_uri(), None), folder=tmp_path
    )
    write_merged(folder_of(name), objective, adapter, tmp_path / "merged")

    labels = {"num_labels": 3} if isinstance(objective, SequenceClassification) else {}
    auto = AUTO_CLASSES[objective.type]
    plain = auto.from_pretrained(folder_of(name), **labels)
    plain.config.pad_token_id = base.pad_id
    close = {"rtol": 1e-3, "atol": 1e-4}
    assert not torch.allclose(untouched, expected, **close)
    assert torch.allclose(logits_of(auto.from_pretrained(tmp_path / "merged"), objective), expected, **close)
    assert torch.allclose(logits_of(peft.PeftModel.from_pretrained(plain, str(tmp_path)), objective), expected, **close)


@pytest.mark.parametrize("name", NAMES)
def test_an_export_compares_the_merged_weights_with_base_and_adapter(folder_of: Callable[[str], Path], name: str) -> None:
    objective = family(name).objective
    base, found = load(folder_of(name), 32, objective), facts(folder_of(name), objective, ())
    adapter, skeleton = random_adapter(base, found), read_skeleton(folder_of(name), objective)
    plan = plan_merge(skeleton, weights=adapter.weights, shard_bytes=2**30)

    difference = largest_difference(objective, skeleton, adapter, plan)

    assert (difference is None) == (not plan.is_complete)
    assert difference is None or difference < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_all_linear_layers_of_the_layers_may_get_adapters_but_neither_output_nor_head(folder_of: Callable[[str], Path], name: str) -> None:
    default, every = (facts(folder_of(name), family(name).objective, targets) for targets in ((), ("all-linear",)))
    names = {one.name for one in every.weights}

    assert {one.name for one in default.weights} < names or "moe" in name or name == "mixtral"
    assert not any(word in one for one in names for word in ("lm_head", "classifier", "pooler", "score", "embed"))


@pytest.mark.parametrize("name", ["llama", "bert", "bart"])
def test_attention_is_computed_in_the_way_that_the_run_names(folder_of: Callable[[str], Path], name: str) -> None:
    objective, attentions = family(name).objective, (None, "eager", "sdpa")
    bases = [load(folder_of(name), 32, objective, attention) for attention in attentions]  # type: ignore[arg-type]  # they are literals

    assert [base.model.config._attn_implementation for base in bases] == ["sdpa", "eager", "sdpa"]
    found = [facts(folder_of(name), objective, (), attention) for attention in attentions]  # type: ignore[arg-type]  # likewise
    assert [one.materialised_attention for one in found] == [False, True, False]
    logits = []
    for base in bases[1:]:
        with attach_adapters(base, FROZEN_ADAPTER, AdapterTensors(), seed=0) as adapters:
            logits.append(logits_of(adapters.model, objective))
    assert torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-5)


def test_a_way_of_computing_attention_that_the_model_does_not_have_is_refused_in_words(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(TaskFailed, match=r"mpnet.*scaled_dot_product_attention") as failed:
        facts(folder_of("mpnet"), family("mpnet").objective, (), "sdpa")

    assert failed.value.reason is FailureReason.BAD_MODEL


def row_of(name: str, folder: Path) -> str:
    """The family's row of docs/models.md, as it is found."""
    one = family(name)
    found, model = facts(folder, one.objective, ()), AUTO_CLASSES[one.objective.type].from_pretrained(folder)
    parts = dict.fromkeys(".".join(weight.name.split(".")[-2:]) for weight in found.weights)
    is_tied = model.get_output_embeddings() is not None and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    cells = (
        *(one.models, f"`{name}`", one.objective.type, ", ".join(f"`{part}`" for part in parts)),
        *(
            "yes" if found.supports_gradient_checkpointing else "no",
            "tied" if is_tied else "own" if isinstance(one.objective, CausalLM) else "–",
        ),
        "a table" if count_positions(model) else "no limit",
    )
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_page_has_the_family_s_row(folder_of: Callable[[str], Path], name: str) -> None:
    assert row_of(name, folder_of(name)) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_names_every_other_family_with_default_weights() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert [name for name in MORE if f"`{name}`" not in page] == []


def test_every_row_of_the_page_is_of_a_family_that_is_tested() -> None:
    rows = [line.split("|")[2].strip().strip("`") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.count("|") == 8]

    assert rows[2:] == list(FAMILIES)

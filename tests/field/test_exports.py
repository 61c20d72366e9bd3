"""What people report of exports elsewhere: every file is exported, and what is exported loads as it says, and is the model."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import global_adapter, run_dry_export, run_export
from peft import PeftModel
from safetensors.torch import load_file, save_file
from toys import END, PAD, VOCABULARY, byte_tokenizer, folders, make_toy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    DebertaV2Config,
    Gemma2Config,
    GPTNeoXConfig,
    MixtralConfig,
    ModernBertConfig,
    Phi3Config,
    Qwen3Config,
    T5Config,
    pipeline,
)

from fedpipe_trainer.adapters import base_name, comparison, streaming_merge
from fedpipe_trainer.contract import CausalLM, FailureReason, Model, Objective, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.checkpoint import read_header

CAUSAL = CausalLM(prompt="{a}", response="{b}")
SEQ2SEQ = Seq2SeqLM(prompt="{a}", response="{b}")
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "eos_token_id": END,
}
_PAIR: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
_STACKS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": END,
    "decoder_start_token_id": END,
    "forced_eos_token_id": END,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 8,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": PAD,
}
FAMILIES: dict[str, tuple[Callable[[], Any], Any, Objective, tuple[str, ...]]] = {
    "qwen3, tied": (lambda: Qwen3Config(**_SIZES, **_PAIR, tie_word_embeddings=True), AutoModelForCausalLM, CAUSAL, ()),
    "gemma2": (lambda: Gemma2Config(**_SIZES, **_PAIR), AutoModelForCausalLM, CAUSAL, ()),
    "phi3, fused": (lambda: Phi3Config(**_SIZES, num_key_value_heads=2), AutoModelForCausalLM, CAUSAL, ("qkv_proj", "o_proj")),
    "gpt-neox, fused": (lambda: GPTNeoXConfig(**_SIZES), AutoModelForCausalLM, CAUSAL, ("query_key_value", "attention.dense")),
    "mixtral": (
        lambda: MixtralConfig(**_SIZES, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1),
        AutoModelForCausalLM,
        CAUSAL,
        (),
    ),
    "deberta": (
        lambda: DebertaV2Config(**_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
        AutoModelForSequenceClassification,
        SequenceClassification(labels=("a", "b", "c")),
        ("query_proj", "value_proj"),
    ),
    "modernbert": (
        lambda: ModernBertConfig(**_SIZES, cls_token_id=END, sep_token_id=END, bos_token_id=END),
        AutoModelForSequenceClassification,
        SequenceClassification(labels=("a", "b")),
        ("Wqkv",),
    ),
    "t5": (lambda: T5Config(**_T5), AutoModelForSeq2SeqLM, SEQ2SEQ, ()),
    "bart": (lambda: BartConfig(**_STACKS), AutoModelForSeq2SeqLM, SEQ2SEQ, ("q_proj", "v_proj")),
    "t5 classifier": (
        lambda: T5Config(**_T5),
        AutoModelForSequenceClassification,
        SequenceClassification(labels=("a", "b", "c")),
        ("Attention.q", "Attention.v"),
    ),
    "bart classifier": (
        lambda: BartConfig(**_STACKS),
        AutoModelForSequenceClassification,
        SequenceClassification(labels=("a", "b", "c")),
        ("q_proj", "v_proj"),
    ),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a toy model."""
    return folders(tmp_path_factory.mktemp("toys"), make_toy)


def make_family(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Objective, tuple[str, ...]]:
    """Write a toy of this family; its class, a task and the weights that get adapters."""
    config, auto, objective, targets = FAMILIES[name]
    torch.manual_seed(0)
    kind = AutoModelForSeq2SeqLM if name.endswith(" classifier") else auto
    kind.from_config(config(), dtype=dtype).save_pretrained(folder)
    byte_tokenizer(add_end_token=False).save_pretrained(folder)
    return auto, objective, targets


def ids() -> torch.Tensor:
    tokens = torch.arange(4, 24).reshape(2, 10)
    tokens[:, -1] = END
    return tokens


def logits(model: Any, objective: Objective) -> torch.Tensor:
    decoder = {"decoder_input_ids": ids()} if isinstance(objective, Seq2SeqLM) else {}
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids(), attention_mask=torch.ones_like(ids()), **decoder).logits
    return found


def with_labels(auto: Any, base: Path, adapter: Path) -> Any:
    """The base as the README loads it: with the labels that the adapter's folder has."""
    return auto.from_pretrained(base, config=AutoConfig.from_pretrained(adapter), ignore_mismatched_sizes=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_file_by_file_a_model_is_what_peft_merges(tmp_path: Path, family: str) -> None:
    auto, objective, targets = make_family(family, tmp_path / "base")

    result = run_export(tmp_path / "base", objective, tmp_path, targets=targets, shard_bytes=20_000)

    merged = PeftModel.from_pretrained(with_labels(auto, tmp_path / "base", tmp_path / "adapter"), tmp_path / "adapter").merge_and_unload()
    exported, info = auto.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected, found = merged.state_dict(), exported.state_dict()
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(logits(exported, objective), logits(merged, objective), rtol=1e-4, atol=1e-4)
    assert (result.max_logit_difference is None) == (family == "mixtral")  # its experts are made of several tensors
    assert len([one for one in result.merged if one.name.endswith(".safetensors")]) > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_of_sixteen_bits_stays_one(tmp_path: Path, dtype: torch.dtype) -> None:
    _, objective, targets = make_family("qwen3, tied", tmp_path / "base", dtype)

    result = run_export(tmp_path / "base", objective, tmp_path, targets=targets)

    (stored,) = {one.dtype for one in read_header(tmp_path / "merged" / "model.safetensors")}
    assert stored == {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert result.max_logit_difference
    assert AutoConfig.from_pretrained(tmp_path / "merged").dtype is dtype


def test_every_file_that_a_tokenizer_saves_is_exported(toy: Callable[[str], Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(toy("llama"), tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    tokenizer.save_pretrained(base)

    result = run_export(base, CAUSAL, tmp_path)

    assert "additional_chat_templates/tools.jinja" in {one.name for one in result.merged} & {one.name for one in result.adapter}
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == {"default": "{{ messages }}", "tools": "{{ tools }}"}
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template == {"default": "{{ messages }}", "tools": "{{ tools }}"}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
@pytest.mark.parametrize("labels", [("yes", "no"), ("red", "green", "blue"), tuple(f"label {number}" for number in range(7))])
def test_the_adapter_of_a_classifier_loads_with_any_number_of_labels(
    toy: Callable[[str], Path], tmp_path: Path, labels: tuple[str, ...]
) -> None:
    run_export(toy("mpnet"), SequenceClassification(labels=labels), tmp_path)

    base = with_labels(AutoModelForSequenceClassification, toy("mpnet"), tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert adapted.config.id2label == dict(enumerate(labels))
    assert adapted(ids()).logits.shape == (2, len(labels))


@pytest.mark.parametrize(
    ("source", "commit", "name", "revision"),
    [
        ("hf://org/name@main", "c0" * 20, "org/name", "c0" * 20),
        ("hf://org/name@v1.0", None, "org/name", "v1.0"),
        ("hf://org/name", None, "org/name", None),
        ("pvc://models/llama", None, "pvc://models/llama", None),
        ("s3://bucket/llama", None, "s3://bucket/llama", None),
    ],
)
def test_the_adapter_names_its_base_as_others_do(source: str, commit: str | None, name: str, revision: str | None) -> None:
    assert base_name(source, commit) == (name, revision)


def test_the_adapter_of_a_base_from_a_hub_names_no_path(toy: Callable[[str], Path], tmp_path: Path) -> None:
    run_export(toy("llama"), CAUSAL, tmp_path, source="hf://org/name@v1.0")

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "v1.0")


def test_a_base_without_a_padding_token_gets_one(toy: Callable[[str], Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(toy("gpt2"), tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))

    run_export(base, SequenceClassification(labels=("a", "b", "c")), tmp_path)

    classify = pipeline("text-classification", str(tmp_path / "merged"), batch_size=2, device="cpu")
    assert len(classify(["a short text", "another, longer text"])) == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").pad_token == "</s>"  # noqa: S105 - a token of text


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")  # peft's, of the adapter: the merged model is untied
def test_an_adapter_of_a_tied_output_layer_leaves_the_input_embeddings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such an adapter is refused when a site is profiled; a run that was planned before that may have one."""
    monkeypatch.setattr("fedpipe_trainer.model.architecture._check_untied", lambda *_: None)
    _, objective, _ = make_family("qwen3, tied", tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    result = run_export(tmp_path / "base", objective, tmp_path, targets=("lm_head", "q_proj"))

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not merged.config.tie_word_embeddings
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert not torch.equal(merged.lm_head.weight, base.lm_head.weight)
    assert result.max_logit_difference is not None
    assert result.max_logit_difference < 1e-3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
@pytest.mark.parametrize("is_equal", [True, False])
def test_an_output_layer_that_is_stored_beside_the_embeddings_it_is_tied_to_is_exported(tmp_path: Path, *, is_equal: bool) -> None:
    """transformers ties the two only if their values are equal, whatever the configuration says."""
    auto, objective, targets = make_family("qwen3, tied", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone() if is_equal else torch.randn_like(embedding)}, file, metadata={"format": "pt"})

    run_export(tmp_path / "base", objective, tmp_path, targets=targets)

    adapted = PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    exported = auto.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(exported, objective), logits(adapted, objective), rtol=1e-4, atol=1e-4)


def test_a_merge_that_is_not_the_base_with_its_adapter_fails_loudly(
    toy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_adapter(tensor: Any, model: Any, adapter: Any) -> torch.Tensor:
        del model
        return adapter.head[tensor.parameter] if tensor.source is None else tensor.source.read()

    monkeypatch.setattr("fedpipe_trainer.adapters.comparison.unrounded_value", without_the_adapter)

    with pytest.raises(TaskFailed, match=r"the merged model is not the base with the adapter: a logit differs by") as failed:
        run_export(toy("llama"), CAUSAL, tmp_path)

    assert failed.value.reason is FailureReason.BAD_MODEL
    assert not (tmp_path / "merged").exists()


def test_no_two_samples_of_the_comparison_differ_in_their_ends_of_sequence() -> None:
    tokenizer = byte_tokenizer(add_end_token=True)

    found = comparison.valid_ids(tokenizer, VOCABULARY)

    assert (found == END).sum(dim=1).tolist() == [1, 1]
    assert not set(found[:, :-1].flatten().tolist()) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("family", ["qwen3, tied", "deberta", "t5", "mixtral"])
def test_the_dry_export_finds_the_files_of_the_export(tmp_path: Path, family: str) -> None:
    _, objective, targets = make_family(family, tmp_path / "base")
    dry = run_dry_export(tmp_path / "base", objective, tmp_path, targets=targets, shard_bytes=30_000)
    shutil.rmtree(tmp_path / "dry")

    result = run_export(tmp_path / "base", objective, tmp_path, targets=targets, shard_bytes=30_000)

    exported = {one.name: one.size for one in result.merged if one.name != "README.md"}
    assert exported == {one.name: one.size for one in dry.merged if one.name != "README.md"}
    assert {one.name for one in result.adapter} == {one.name for one in dry.adapter}
    bounds = {one.name: one.size for one in dry.adapter}
    assert all(one.size <= bounds[one.name] for one in result.adapter if one.name.endswith(".safetensors"))
    assert dry.fingerprint is None  # that takes a hash of the whole base


def test_a_dry_export_says_that_a_weight_cannot_be_merged(toy: Callable[[str], Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(toy("llama"), tmp_path / "base"))
    file = base / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    key = "model.layers.0.self_attn.q_proj.weight"
    header[key]["dtype"] = "I32"  # as a checkpoint that is quantised already has it
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    with pytest.raises(TaskFailed, match=r"already quantised .*q_proj\.weight is of type I32.*give the original checkpoint"):
        run_dry_export(base, CAUSAL, tmp_path)


def test_a_dry_export_says_that_the_disk_is_too_small(toy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("fedpipe_trainer.recipes.dry_export.shutil.disk_usage", lambda _folder: usage._replace(free=10_000))

    with pytest.raises(TaskFailed, match=r"the export needs 0\.0 GiB of disk"):
        run_dry_export(toy("llama"), CAUSAL, tmp_path)


def test_a_dry_export_says_that_the_merged_model_would_not_load(
    toy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(shard: streaming_merge.Shard, folder: Path) -> None:
        streaming_merge.write_hollow(streaming_merge.Shard(shard.name, shard.tensors[1:]), folder)

    monkeypatch.setattr("fedpipe_trainer.recipes.dry_export.write_hollow", lost)

    with pytest.raises(TaskFailed, match=r"would be exported is not the base's architecture \(missing: "):
        run_dry_export(toy("llama"), CAUSAL, tmp_path)


def test_a_weight_of_infinite_values_is_told_before_it_is_trained(toy: Callable[[str], Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy("llama"))
    for name, parameter in model.named_parameters():
        if "k_proj" in name:
            parameter.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer(add_end_token=False).save_pretrained(tmp_path / "base")

    with pytest.raises(TaskFailed, match="has values that are not finite"):
        run_dry_export(tmp_path / "base", CAUSAL, tmp_path)


def test_a_merged_model_that_would_not_be_the_base_is_told_before_anything_is_trained(
    toy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(tensor: Any, model: Any, adapter: Any) -> torch.Tensor:
        del model, adapter
        return tensor.source.read().float() + 1  # type: ignore[no-any-return]  # of a tensor

    monkeypatch.setattr("fedpipe_trainer.adapters.comparison.unrounded_value", changed)

    with pytest.raises(TaskFailed, match="the merged model is not the base with the adapter: a logit differs by"):
        run_dry_export(toy("llama"), CAUSAL, tmp_path)


def test_a_base_on_no_volume_is_tried_by_its_headers(toy: Callable[[str], Path], tmp_path: Path) -> None:
    files = {path.name: path for path in toy("llama").iterdir()}
    model = Model(
        source="s3://bucket/llama",
        files={name: path.as_uri() for name, path in files.items()},
        sizes={name: path.stat().st_size for name, path in files.items()},
    )

    dry = run_dry_export(toy("llama"), CAUSAL, tmp_path, model=model)

    hollow = tmp_path / "dry" / "headers" / "model.safetensors"
    assert hollow.stat().st_size == files["model.safetensors"].stat().st_size
    assert hollow.stat().st_blocks * 512 < hollow.stat().st_size / 2
    assert dry.scratch_bytes > sum(model.sizes.values())
    assert "model.safetensors" in {one.name for one in dry.merged}


def test_the_model_card_says_where_the_model_comes_from(toy: Callable[[str], Path], tmp_path: Path) -> None:
    provenance = {"sites": ("ward-1", "ward-2"), "rounds": 3, "metrics": {"accuracy": 0.75}, "base_metrics": {"accuracy": 0.25}}

    run_export(toy("llama"), CAUSAL, tmp_path, source="hf://org/name@main", provenance=provenance)

    for folder in ("adapter", "merged"):
        card = (tmp_path / folder / "README.md").read_text()
        assert 'base_model: "org/name"' in card
        assert "3 rounds of federated fine-tuning at 2 sites (ward-1, ward-2)" in card
        assert "| accuracy | 0.25 | 0.75 |" in card


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
@pytest.mark.parametrize("source", ["hf://org/name@main", "pvc://models/llama", "file:///models/llama"])
def test_the_lines_of_the_card_name_a_base_that_transformers_loads(toy: Callable[[str], Path], tmp_path: Path, source: str) -> None:
    run_export(toy("llama"), CAUSAL, tmp_path, source=source)

    card = (tmp_path / "adapter" / "README.md").read_text()
    lines = card.partition("```python\n")[2].partition("```")[0]
    here = {"'org/name'": repr(str(toy("llama"))), "'/models/llama'": repr(str(toy("llama"))), '"BASE"': repr(str(toy("llama")))}
    for named, folder in ({'"export/adapter"': repr(str(tmp_path / "adapter")), ", revision='main'": ""} | here).items():
        lines = lines.replace(named, folder)
    loaded: dict[str, Any] = {}
    exec(lines, loaded)  # noqa: S102 - what a reader of the card would run

    assert loaded["model"].peft_config["default"].r > 0
    assert "from_pretrained('pvc://" not in card
    assert "vllm serve pvc://" not in card
    assert ("`AutoPeftModelFor…` does not find the base" in card) == source.startswith("pvc://")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
def test_the_lines_of_the_readme_load_a_classifier_with_the_labels_of_the_run(toy: Callable[[str], Path], tmp_path: Path) -> None:
    run_export(toy("mpnet"), SequenceClassification(labels=("a", "b", "c")), tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (lines,) = (code for code in readme.split("```") if code.startswith("python\n") and "AutoModelForSequenceClassification" in code)
    for named, folder in (("runs/default/notes/store/export/adapter", tmp_path / "adapter"), ("models/base", toy("mpnet"))):
        lines = lines.replace(named, str(folder))
    loaded: dict[str, Any] = {}
    exec(lines.removeprefix("python\n"), loaded)  # noqa: S102 - what a reader of the page would run

    assert list(loaded["model"].config.id2label.values()) == ["a", "b", "c"]


def test_the_adapter_that_is_tried_is_the_one_of_the_run(toy: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = global_adapter(toy("llama"), CAUSAL, tmp_path)

    result = run_export(toy("llama"), CAUSAL, tmp_path, global_adapter=adapter)

    assert {one.name for one in result.adapter} >= {"adapter_config.json", "adapter_model.safetensors"}

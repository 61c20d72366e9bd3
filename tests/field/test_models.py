"""Base models as people have them: each kind of problem that was reported elsewhere is found when a site is profiled, in words, or works.

The rows of the field reports that are about models, a section each.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from toys import PAD, VOCABULARY, byte_tokenizer, make_toy

from fedpipe_trainer.adapters import FROZEN_ADAPTER, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import CausalLM, Data, FailureReason, Model, Objective, ProfileTask, RunRef, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.failures import failure_of
from fedpipe_trainer.model import fetch, fingerprint, load, read_tokenizer
from fedpipe_trainer.model.head import match_labels
from fedpipe_trainer.model.limits import count_positions
from fedpipe_trainer.recipes import profile
from fedpipe_trainer.task_runtime import TaskRuntime

CLASSES = SequenceClassification(labels=("no", "yes"), max_length=64)
CAUSAL = CausalLM(prompt="{text}", response="{label}", max_length=64)
SEQ2SEQ = Seq2SeqLM(prompt="{text}", response="{label}", max_length=64)
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
HEADS: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART: dict[str, Any] = (
    HEADS | dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 32) | dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
)
BART |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "forced_eos_token_id": None}
OPT: dict[str, Any] = SMALL | {"word_embed_proj_dim": 32, "ffn_dim": 32, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    make_toy("llama", folder)
    return folder


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A model's folder that a test may change."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


@pytest.fixture
def sharded(llama: Path, tmp_path: Path) -> Path:
    """The same model in several files of weights with an index."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    folder = Path(shutil.copytree(llama, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors")))
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def make_runtime(folder: Path) -> TaskRuntime:
    (folder / "cache").mkdir(exist_ok=True)
    return TaskRuntime(folder=folder, cache=folder / "cache", write_progress=lambda _progress: None, stop_requested=lambda: False)


def fetched(folder: Path, scratch: Path) -> Path:
    return fetch(Model(source=folder.as_uri()), make_runtime(scratch))


def refusal(call: Callable[[], object]) -> str:
    """The message of the BadModel that a call ends in."""
    with pytest.raises(TaskFailed) as failed:
        call()
    assert failed.value.reason is FailureReason.BAD_MODEL
    return failed.value.message


def save(folder: Path, config: Any, auto: Any = transformers.AutoModel, *, tokenizer: Any = None) -> Path:
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)
    (tokenizer or byte_tokenizer(add_end_token=False)).save_pretrained(folder)
    return folder


def profile_task(model: Path, scratch: Path, objective: Objective, **fields: Any) -> ProfileTask:
    rows = [{"text": f"row {at}", "label": ("no", "yes")[at % 2]} for at in range(8)]
    (scratch / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(train=str(scratch / "rows.jsonl"), validation=str(scratch / "rows.jsonl"))
    run = RunRef(namespace="n", name="r", uid="u")
    named = {
        "run": run,
        "site": "a",
        "model": Model(source=model.as_uri()),
        "result": "file:///nowhere",
        "bits": (32,),
        "batch_sizes": (1,),
    }
    return ProfileTask(**(named | {"objective": objective, "data": data, "rank": 1} | fields))


def prepared(model: Path, scratch: Path, objective: Objective, **fields: Any) -> profile.PreparedSite:
    return profile.prepare(profile_task(model, scratch, objective, **fields), model)


# Text beyond the position table.

TABLES: dict[str, tuple[Any, int]] = {
    "bert": (transformers.BertConfig(**SMALL, max_position_embeddings=64), 64),
    "roberta, whose table begins after the padding": (transformers.RobertaConfig(**SMALL, max_position_embeddings=66, pad_token_id=1), 64),
    "mpnet, likewise": (transformers.MPNetConfig(**SMALL, max_position_embeddings=66), 64),
    "gpt2": (transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=64), 64),
    "opt, whose table has an offset": (transformers.OPTConfig(**OPT), 64),
    "bart": (transformers.BartConfig(**BART), 64),
    "gpt-j, whose table is computed": (
        transformers.GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=64, rotary_dim=4),
        64,
    ),
    "deberta with absolute positions": (transformers.DebertaV2Config(**SMALL, max_position_embeddings=64), 64),
}
WITHOUT_A_TABLE: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SMALL, max_position_embeddings=64),
    "t5": transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_ff=32, d_kv=16, num_layers=1, num_heads=2),
    "bloom": transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2),
    "deberta with relative positions": transformers.DebertaV2Config(**SMALL, relative_attention=True, position_biased_input=False),
}


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config)


@pytest.mark.parametrize("name", TABLES)
def test_the_positions_of_a_table_are_as_many_as_the_model_can_compute(name: str) -> None:
    config, positions = TABLES[name]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    longest, too_long = (torch.full((1, length), 7) for length in (positions, positions + 1))

    assert count_positions(model) == count_positions(on_meta(config)) == positions
    with torch.no_grad():
        model(input_ids=longest)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=too_long)


@pytest.mark.parametrize("name", WITHOUT_A_TABLE)
def test_a_model_that_has_no_table_has_no_limit(name: str) -> None:
    assert count_positions(on_meta(WITHOUT_A_TABLE[name])) is None


def test_a_max_length_beyond_the_positions_is_refused_when_the_site_is_profiled_with_both_numbers(tmp_path: Path) -> None:
    model = save(tmp_path / "bert", TABLES["bert"][0], transformers.AutoModelForMaskedLM)

    said = refusal(lambda: prepared(model, tmp_path, CLASSES.model_copy(update={"max_length": 65})))

    assert said == "task.maxLength is 65, but the bert model has only 64 positions: lower task.maxLength to 64, or use another base model"
    assert prepared(model, tmp_path, CLASSES).base.architecture == "bert"


def test_a_prompt_with_its_answer_beyond_the_positions_is_refused_with_both_numbers(tmp_path: Path) -> None:
    model = save(tmp_path / "gpt2", TABLES["gpt2"][0], transformers.AutoModelForCausalLM)

    said = refusal(lambda: prepared(model, tmp_path, CAUSAL, max_new_tokens=40))

    assert "a prompt of 32 tokens and 40 of evaluation.maxNewTokens make 72, but the gpt2 model has only 64 positions" in said
    assert prepared(model, tmp_path, CAUSAL, max_new_tokens=32).base.layers == 1


def test_an_answer_beyond_the_decoder_s_positions_is_refused_with_both_numbers(tmp_path: Path) -> None:
    model = save(tmp_path / "bart", TABLES["bart"][0], transformers.AutoModelForSeq2SeqLM)
    targets = ("q_proj",)

    said = refusal(lambda: prepared(model, tmp_path, SEQ2SEQ, max_new_tokens=65, target_modules=targets))

    assert "evaluation.maxNewTokens is 65, but the bart model has only 64 positions" in said
    assert prepared(model, tmp_path, SEQ2SEQ, max_new_tokens=64, target_modules=targets)


# A tokenizer that is larger than the embedding.


@pytest.mark.parametrize("special", [False, True], ids=["a word", "a special token"])
def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused_with_both_numbers(
    copy: Path, tmp_path: Path, *, special: bool
) -> None:
    tokenizer = byte_tokenizer(add_end_token=False)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=special)
    tokenizer.save_pretrained(copy)

    said = refusal(lambda: prepared(copy, tmp_path, CAUSAL))

    assert f"the tokenizer has {VOCABULARY + 2} tokens, but the embedding of the llama model has {VOCABULARY} rows" in said


def test_a_token_of_images_that_no_text_has_needs_no_row(copy: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(add_end_token=False)
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    tokenizer.save_pretrained(copy)
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra_special_tokens": {"image_token": "<image_soft_token>"}}))

    assert len(read_tokenizer(copy)) == VOCABULARY + 1
    assert prepared(copy, tmp_path, CAUSAL)


# Pointers of git-lfs, cut files, and files that are none.

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer.model", "spiece.model", "vocab.txt"])
def test_a_git_lfs_pointer_is_called_so(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).write_text(POINTER)

    assert f"{copy}/{name} is a git-lfs pointer and not the file itself: run `git lfs pull`" in refusal(lambda: fetched(copy, tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "tf_model.h5", "flax_model.msgpack"])
def test_weights_of_another_format_are_named_and_their_pointers_too(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(b"PK\x03\x04 pickled")
    assert f"has no model.safetensors (only safetensors checkpoints are supported), but {name}" in refusal(lambda: fetched(copy, tmp_path))

    (copy / name).write_text(POINTER)
    assert f"{name} is a git-lfs pointer" in refusal(lambda: fetched(copy, tmp_path))


def test_a_folder_of_another_kind_is_told_what_it_is(copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").unlink()
    (copy / "model.safetensors").rename(copy / "adapter_model.safetensors")
    (copy / "adapter_config.json").write_text("{}")
    said = refusal(lambda: fetched(copy, tmp_path))
    assert "has no config.json: adapter_model.safetensors belongs to a PEFT adapter. Merge it into its base" in said

    (copy / "adapter_config.json").unlink()
    (copy / "adapter_model.safetensors").rename(copy / "model.Q4_K_M.gguf")
    assert "has no config.json, but model.Q4_K_M.gguf" in refusal(lambda: fetched(copy, tmp_path))


def test_a_shard_that_is_a_git_lfs_pointer_is_called_so(sharded: Path, tmp_path: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_text(POINTER)

    assert f"{shard} is a git-lfs pointer" in refusal(lambda: fetched(sharded, tmp_path))


@pytest.mark.parametrize("kept", [0, 4, 40, 0.5, 0.99, -1])
def test_weights_that_are_cut_short_are_called_so_with_both_sizes(copy: Path, tmp_path: Path, kept: float) -> None:
    path = copy / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))] if isinstance(kept, float) else data[:kept])

    said = refusal(lambda: fetched(copy, tmp_path))

    assert f"{path} is {'cut short' if kept else 'empty'}" in said
    assert not isinstance(kept, float) or f"it has {path.stat().st_size} bytes, and by its header it needs {len(data)}" in said


def test_a_shard_that_is_cut_short_is_named(sharded: Path, tmp_path: Path) -> None:
    shard = max(sharded.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])

    assert f"{shard} is cut short" in refusal(lambda: fetched(sharded, tmp_path))


def test_a_missing_shard_is_named_with_the_number_of_all(sharded: Path, tmp_path: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[1].unlink()

    said = refusal(lambda: fetched(sharded, tmp_path))

    assert f"names {len(shards)} files of weights, 1 of which are missing: {shards[1].name}" in said


def test_shards_without_an_index_and_shards_of_another_commit_are_refused(sharded: Path, tmp_path: Path) -> None:
    first, second, *_ = sorted(sharded.glob("model-*.safetensors"))
    second.write_bytes(first.read_bytes())
    assert f"{second} has no tensor" in refusal(lambda: fetched(sharded, tmp_path))

    (sharded / "model.safetensors.index.json").unlink()
    assert "no model.safetensors.index.json for its model-00001" in refusal(lambda: fetched(sharded, tmp_path))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_that_is_cut_short_is_called_so(copy: Path, tmp_path: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    assert f"{path} is cut short" in refusal(lambda: read_tokenizer(fetched(copy, tmp_path)))


def test_an_index_that_is_cut_short_is_called_so(sharded: Path, tmp_path: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    path.write_bytes(path.read_bytes()[:-20])

    assert f"{path} is cut short" in refusal(lambda: fetched(sharded, tmp_path))


def test_a_link_to_nowhere_and_a_web_page_are_called_so(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to("../../blobs/4d7a2146")
    assert "model.safetensors is a link to ../../blobs/4d7a2146, which is not there" in refusal(lambda: fetched(copy, tmp_path))

    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    assert "model.safetensors is a web page" in refusal(lambda: fetched(copy, tmp_path))


def test_files_of_weights_that_are_not_loaded_do_not_matter(copy: Path, tmp_path: Path) -> None:
    before = prepared(fetched(copy, tmp_path), tmp_path, CAUSAL).base
    (copy / "pytorch_model.bin").write_text(POINTER)
    shutil.copy(copy / "model.safetensors", copy / "consolidated.safetensors")
    assert prepared(fetched(copy, tmp_path), tmp_path, CAUSAL).base == before

    (copy / "consolidated.safetensors").write_text(POINTER)
    assert prepared(fetched(copy, tmp_path), tmp_path, CAUSAL).base == before


# Tokenizers that only sentencepiece can read.


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import sentencepiece  # noqa: PLC0415 - only these tests need it

    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text").write_text("".join(f"the quick brown fox {at} jumps over {at * 7} lazy dogs\n" for at in range(300)))
    options = {"vocab_size": 80, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=str(folder / "text"), model_prefix=str(folder / "m"), model_type="unigram", **options)
    return (folder / "m.model").read_bytes()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (transformers.T5Config(), "spiece.model"),
        (transformers.LlamaConfig(), "tokenizer.model"),
        (transformers.XLMRobertaConfig(), "sentencepiece.bpe.model"),
        (transformers.DebertaV2Config(), "spm.model"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_tokenizer_of_which_there_is_only_the_model_of_sentencepiece_is_read(
    sentencepiece_model: bytes, tmp_path: Path, config: Any, name: str
) -> None:
    config.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(sentencepiece_model)

    tokenizer = read_tokenizer(tmp_path)

    assert tokenizer.decode(tokenizer("the quick fox").input_ids, skip_special_tokens=True).strip() == "the quick fox"


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, b"\x0a\x05abc"])
def test_a_damaged_model_of_sentencepiece_is_the_model_s_fault(sentencepiece_model: bytes, tmp_path: Path, damage: bytes) -> None:
    transformers.T5Config().save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(damage or sentencepiece_model[:400])

    assert "the tokenizer in" in refusal(lambda: read_tokenizer(tmp_path))


def test_the_package_that_reads_them_is_pinned_for_the_trainer() -> None:
    pinned = (Path(__file__).parents[2] / "pyproject.toml").read_text()

    assert '"sentencepiece==' in pinned


# A checkpoint that is already quantised.


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config, gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config, awq"),
        ({"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}, "quantization_config, bitsandbytes"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config, fp8"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization, 4 bits"),
        ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "text_config.quantization_config, mxfp4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_of_a_quantised_checkpoint_is_refused_when_the_model_is_fetched(
    copy: Path, tmp_path: Path, entry: dict[str, Any], named: str
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | entry))

    said = refusal(lambda: fetched(copy, tmp_path))

    assert f"is already quantised (config.json has {named})" in said
    assert "give the original checkpoint" in said


@pytest.mark.parametrize("sign", ["quantize_config.json", "qweight", "int8", "float8"])
def test_a_quantised_checkpoint_whose_configuration_does_not_say_so_is_refused_by_its_files(copy: Path, tmp_path: Path, sign: str) -> None:
    path = copy / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    match sign:
        case "qweight":
            tensors["model.layers.0.self_attn.q_proj.qweight"] = torch.zeros(4, 4, dtype=torch.int32)
        case "int8":
            tensors[name] = tensors[name].to(torch.int8)
        case "float8":
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        case _:
            (copy / sign).write_text('{"bits": 4}')
    save_file(tensors, path)

    assert "is already quantised" in refusal(lambda: fetched(copy, tmp_path))


def test_masks_of_bytes_are_no_sign_of_quantisation(copy: Path, tmp_path: Path) -> None:
    path = copy / "model.safetensors"
    masks = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool), "position_ids": torch.arange(4)}
    save_file(load_file(path) | masks, path)

    assert fetched(copy, tmp_path) == copy


# An adapter on a tied weight.


@pytest.mark.parametrize(
    ("config", "auto", "objective"),
    [
        (transformers.LlamaConfig(**SMALL, tie_word_embeddings=True), transformers.AutoModelForCausalLM, CAUSAL),
        (TABLES["gpt2"][0], transformers.AutoModelForCausalLM, CAUSAL),
        (transformers.BartConfig(**BART), transformers.AutoModelForSeq2SeqLM, SEQ2SEQ),
    ],
    ids=["llama", "gpt2", "bart"],
)
def test_an_adapter_on_an_output_layer_that_is_the_input_s_embedding_is_refused(
    tmp_path: Path, config: Any, auto: Any, objective: Objective
) -> None:
    model = save(tmp_path / "model", config, auto)

    said = refusal(lambda: prepared(model, tmp_path, objective, target_modules=("lm_head",)))

    assert "lm_head has the same weight as" in said
    assert "leave it out of planning.targetModules" in said


def test_an_adapter_on_an_output_layer_of_its_own_is_allowed(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=False)
    model = save(tmp_path / "model", config, transformers.AutoModelForCausalLM)

    assert [weight.name for weight in prepared(model, tmp_path, CAUSAL, target_modules=("lm_head",)).base.weights] == ["lm_head"]


# Models without gradient checkpointing.


@pytest.mark.parametrize(("name", "can"), [("mpnet", False), ("bert", True)])
def test_the_profile_tells_whether_a_model_can_recompute_its_activations(tmp_path: Path, name: str, *, can: bool) -> None:
    make_toy(name, tmp_path / "model")

    assert prepared(tmp_path / "model", tmp_path, CLASSES).base.supports_gradient_checkpointing is can


# Commits of the tokenizer alone.


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
        *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm", "bpe.codes", "qwen.tiktoken"),
        *("chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja", "prophetnet.tokenizer", "tekken.json"),
    ],
)
def test_another_tokenizer_or_template_is_another_model(copy: Path, name: str) -> None:
    before = fingerprint(copy)
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text('{"another": 1}')

    assert fingerprint(copy) != before


# A base that is a classifier already.


def classifier(folder: Path, labels: tuple[str, ...], auto: str = "bert") -> Path:
    kind = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}[auto]
    config = kind(**SMALL, max_position_embeddings=512, pad_token_id=PAD)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: at for at, label in enumerate(labels)}
    return save(folder, config, transformers.AutoModelForSequenceClassification)


def logits_of(folder: Path, objective: Objective, bits: Any = 32) -> torch.Tensor:
    base = load(folder, bits, objective)
    ids = torch.tensor([[72, 101, 108, 108, 111]])
    with attach_adapters(base, FROZEN_ADAPTER, AdapterTensors(), seed=0) as adapters, torch.no_grad():
        return adapters.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("labels", [("no", "yes"), ("yes", "no"), ("YES", "No")], ids=" ".join)
def test_a_classifier_of_the_run_s_labels_keeps_its_head_in_the_order_of_the_run(
    tmp_path: Path, kind: str, labels: tuple[str, ...]
) -> None:
    folder = classifier(tmp_path / "model", labels, kind)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([[72, 101, 108, 108, 111]])
    with torch.no_grad():
        own = model(input_ids=ids).logits
    order = [[one.casefold() for one in labels].index(label) for label in CLASSES.labels]

    assert torch.allclose(logits_of(folder, CLASSES), own[:, order], atol=1e-6)


@pytest.mark.parametrize("labels", [("no", "yes", "maybe"), ("LABEL_0", "LABEL_1"), ("good", "bad")], ids=" ".join)
def test_a_classifier_of_other_labels_gets_the_head_of_the_seed(tmp_path: Path, labels: tuple[str, ...]) -> None:
    folder = classifier(tmp_path / "model", labels)

    assert load(folder, 32, CLASSES).own_head == {}


def test_sites_of_all_bit_widths_start_from_the_same_head(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", ("no", "yes"))
    heads = [load(folder, bits, CLASSES).own_head for bits in (32, 16)]

    assert heads[0].keys() == heads[1].keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.parametrize(
    ("own", "order"),
    [
        ({0: "a", 1: "b"}, (0, 1)),
        ({0: "b", 1: "a"}, (1, 0)),
        ({0: "B", 1: "A"}, (1, 0)),
        ({0: "a"}, None),
        ({0: "a", 1: "A"}, None),
        ({0: "a", 1: "b", 2: "c"}, None),
    ],
)
def test_labels_match_if_they_are_the_same_whatever_their_order_and_case(own: dict[int, str], order: tuple[int, ...] | None) -> None:
    assert match_labels(own, ("a", "b")) == order


# No exception of a library reaches the user as Unexpected.


def failure_in(call: Callable[[], object]) -> tuple[FailureReason, str]:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever the library raises
        call()
    failure = failure_of(raised.value, elapsed_seconds=1.0)
    return failure.reason, failure.message


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError, AttributeError, NotImplementedError], ids=lambda one: one.__name__)
def test_what_transformers_raises_while_a_model_is_read_is_the_model_s_fault(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    module = transformers.LlamaModel

    def broken(_self: Any, *_arguments: Any) -> None:
        raise error("the configuration has no field x")

    source = compile(
        "def init(self, *arguments, **options):\n    broken(self)\n", transformers.models.llama.modeling_llama.__file__, "exec"
    )
    names: dict[str, Any] = {"broken": broken}
    exec(source, names)  # noqa: S102 - so that the frame is the library's
    monkeypatch.setattr(module, "__init__", names["init"])
    monkeypatch.setattr(broken, "__code__", broken.__code__.replace(co_filename=transformers.models.llama.modeling_llama.__file__))

    reason, message = failure_in(lambda: prepared(copy, tmp_path, CAUSAL))

    assert reason is FailureReason.BAD_MODEL
    assert "the configuration has no field x" in message


def test_a_configuration_of_wrong_types_is_the_model_s_fault(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    for entry in (
        {"hidden_size": "many"},
        {"num_attention_heads": 0},
        {"hidden_act": "no such"},
        {"rope_parameters": 5},
        {"vocab_size": -1},
    ):
        (copy / "config.json").write_text(json.dumps(config | entry))

        reason, message = failure_in(lambda: prepared(copy, tmp_path, CAUSAL))

        assert (reason, entry) == (FailureReason.BAD_MODEL, entry), message


def test_an_unknown_failure_names_its_step_and_its_file_and_what_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise OSError(5, "Input/output error", "/data/rows.jsonl")

    monkeypatch.setattr(profile, "select_rows", broken)
    task = profile_task(tmp_path, tmp_path, CAUSAL)

    reason, message = failure_in(lambda: profile.prepare(task, tmp_path))

    assert reason is FailureReason.UNEXPECTED
    assert message.startswith("OSError in broken (")
    assert "in step <genexpr> (profile.py:" in message or "in step prepare (profile.py:" in message
    assert "with the file /data/rows.jsonl" in message
    assert "report this line" in message


def test_a_full_volume_is_tried_again_and_a_missing_package_is_named() -> None:
    def write() -> None:
        raise OSError(28, "No space left on device", "/scratch/model.safetensors")

    def use() -> None:
        raise ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken")

    assert failure_in(write)[0] is FailureReason.TRANSFER_FAILED
    assert "the volume of /scratch/model.safetensors is full" in failure_in(write)[1]
    assert failure_in(use)[0] is FailureReason.BAD_MODEL
    assert "the Python package tiktoken is needed" in failure_in(use)[1]

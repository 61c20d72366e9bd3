"""The base model: valid and invalid folders, fingerprints, target weights by architecture, loading at every bit width."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpipe_trainer.contract import Bits, CausalLM, FailureReason, Model, Objective, Seq2SeqLM, SequenceClassification, WeightShape
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import (
    checkpoint_dtype,
    clear_cache,
    facts,
    fetch,
    fingerprint,
    identity,
    load,
    load_cached,
    read_tokenizer,
    target_weights,
)
from fedpipe_trainer.model.architecture import layer_of
from fedpipe_trainer.task_runtime import TaskRuntime

Toy = Callable[[str], Path]
CAUSAL = CausalLM(prompt="{a}", response="{b}")
SEQ2SEQ = Seq2SeqLM(prompt="{a}", response="{b}")
CLASSES = SequenceClassification(labels=("a", "b", "c"))
ALL_BITS: tuple[Bits, ...] = (4, 8, 16, 32)


@pytest.fixture
def runtime(tmp_path: Path) -> TaskRuntime:
    (tmp_path / "cache").mkdir()
    return TaskRuntime(folder=tmp_path, cache=tmp_path / "cache", write_progress=lambda _progress: None, stop_requested=lambda: False)


@pytest.fixture
def copy(toy: Toy, tmp_path: Path) -> Path:
    """A copy of a model's folder that a test may change."""
    return Path(shutil.copytree(toy("llama"), tmp_path / "model"))


def source(folder: Path) -> Model:
    return Model(source=f"file://{folder}")


def test_a_complete_local_folder_is_used_in_place(copy: Path, runtime: TaskRuntime) -> None:
    assert fetch(source(copy), runtime) == copy


@pytest.mark.parametrize(
    ("removed", "message"),
    [("config.json", "no config.json"), ("model.safetensors", "no model.safetensors"), ("tokenizer.json", "no tokenizer.json")],
)
def test_a_missing_file_of_a_model_folder_is_an_error_that_names_it(copy: Path, runtime: TaskRuntime, removed: str, message: str) -> None:
    (copy / removed).unlink()

    with pytest.raises(TaskFailed, match=message) as failed:
        fetch(source(copy), runtime)

    assert failed.value.reason is FailureReason.BAD_MODEL


def test_a_file_that_the_trainer_may_not_read_is_an_error_that_names_it_and_says_what_to_do(
    copy: Path, runtime: TaskRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path).name != "model.safetensors")  # root may read everything

    with pytest.raises(TaskFailed, match=r"may not read model.safetensors .* make them readable \(chmod a\+r\)") as failed:
        fetch(source(copy), runtime)

    assert failed.value.reason is FailureReason.BAD_MODEL


def test_a_missing_model_folder_is_an_error_that_names_it(tmp_path: Path, runtime: TaskRuntime) -> None:
    with pytest.raises(TaskFailed, match=f"the model folder {tmp_path}/nowhere does not exist"):
        fetch(source(tmp_path / "nowhere"), runtime)


def test_a_model_that_is_not_the_runs_is_refused_with_both_fingerprints(toy: Toy, runtime: TaskRuntime) -> None:
    expected, actual = fingerprint(toy("gpt2")), fingerprint(toy("llama"))

    with pytest.raises(TaskFailed, match=rf"{actual}.*{expected}"):
        fetch(Model(source=f"file://{toy('llama')}", fingerprint=expected), runtime)

    assert fetch(Model(source=f"file://{toy('llama')}", fingerprint=actual), runtime) == toy("llama")


def test_the_fingerprint_is_the_hash_of_what_sha256sum_prints_for_the_files_that_are_loaded(copy: Path, tmp_path: Path) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(copy.iterdir())]
    for name in ("README.md", ".gitattributes", "LICENSE.txt", "training_args.json"):
        (copy / name).write_text("hello")

    assert fingerprint(copy) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert fingerprint(Path(shutil.copytree(copy, tmp_path / "elsewhere"))) == fingerprint(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_byte_in_the_middle_of_any_loaded_file_makes_another_model(copy: Path, name: str) -> None:
    before, data = fingerprint(copy), bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)

    assert fingerprint(copy) != before


@pytest.mark.parametrize("name", ["generation_config.json", "merges.txt", "spiece.model", "adapter_config.json"])
def test_a_file_that_loading_would_read_in_addition_makes_another_model(copy: Path, name: str) -> None:
    before = fingerprint(copy)
    (copy / name).write_text("{}")

    assert fingerprint(copy) != before


def test_all_vocabularies_of_tokenizers_count(toy: Toy) -> None:
    names = {name for one in ("llama", "gpt2", "bert", "t5", "mpnet") for name in read_tokenizer(toy(one)).vocab_files_names.values()}

    assert {name for name in names if not any(fnmatch(name, pattern) for pattern in identity._LOADED)} == set()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to be hashed; this process knows none."""
    read, digest = list[str](), hashlib.file_digest
    monkeypatch.setattr(identity, "_known", {})

    def file_digest(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    return read


def test_a_site_hashes_a_local_model_once_for_all_its_tasks(copy: Path, runtime: TaskRuntime, hashed: list[str]) -> None:
    fetch(source(copy), runtime)
    first = list(hashed)
    identity._known.clear()  # as in another process

    fetch(source(copy), runtime)

    assert "model.safetensors" in first
    assert hashed == first


def test_a_model_that_was_replaced_in_place_is_noticed_though_size_and_modification_time_are_kept(
    copy: Path, runtime: TaskRuntime, hashed: list[str]
) -> None:
    known = Model(source=f"file://{copy}", fingerprint=fingerprint(fetch(source(copy), runtime)))
    path = copy / "model.safetensors"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    hashed.clear()

    with pytest.raises(TaskFailed, match=r"use the same weights, config\.json and tokenizer files at every site"):
        fetch(known, runtime)

    assert hashed == ["model.safetensors"]


@pytest.mark.parametrize("damage", ["", "{", '{"size": 1}'])
def test_a_damaged_hash_is_computed_again(copy: Path, runtime: TaskRuntime, hashed: list[str], damage: str) -> None:
    fetch(source(copy), runtime)
    for record in (runtime.cache / "hashes").iterdir():
        record.write_text(damage)
    identity._known.clear()
    first = list(hashed)

    fetch(source(copy), runtime)

    assert hashed == 2 * first


def test_the_hash_of_a_model_that_no_task_has_used_for_a_month_is_removed(copy: Path, runtime: TaskRuntime, tmp_path: Path) -> None:
    another, new = (Path(shutil.copytree(copy, tmp_path / name)) for name in ("another", "new"))
    for folder in (copy, another):
        fetch(source(folder), runtime)
    for record in (runtime.cache / "hashes").iterdir():
        os.utime(record, times=(0, 0))
    identity._known.clear()  # as in another process

    fetch(source(copy), runtime)
    fetch(source(new), runtime)

    kept, files = len(list((runtime.cache / "hashes").iterdir())), len(identity.loaded_files(copy))
    assert kept == 2 * files


def test_where_hashes_cannot_be_kept_the_next_task_computes_them_and_the_log_says_so(
    copy: Path, runtime: TaskRuntime, caplog: pytest.LogCaptureFixture, hashed: list[str]
) -> None:
    (runtime.cache / "hashes").write_text("a file where the folder should be")

    assert fetch(source(copy), runtime) == copy
    assert hashed
    assert "the hash of the model is not kept, the next task computes it again" in caplog.text


def test_a_downloaded_model_has_the_hashes_of_its_download(toy: Toy, runtime: TaskRuntime, hashed: list[str]) -> None:
    model = Model(source="s3://bucket/model", files={path.name: path.as_uri() for path in toy("llama").iterdir()})
    folder = fetch(model, runtime)
    hashed.clear()

    fetch(model, runtime)

    assert hashed == []
    assert fingerprint(folder) == fingerprint(toy("llama"))


def test_a_model_at_urls_is_downloaded_once(toy: Toy, runtime: TaskRuntime) -> None:
    files = {path.name: f"file://{path}" for path in toy("llama").iterdir()}
    model = Model(source="s3://bucket/model", files=files)

    folder = fetch(model, runtime)
    downloaded = runtime.measured().downloaded_bytes
    again = fetch(model, runtime)

    assert fingerprint(folder) == fingerprint(toy("llama"))
    assert folder == again
    assert downloaded == runtime.measured().downloaded_bytes > 0


def test_an_s3_model_without_urls_is_refused(runtime: TaskRuntime) -> None:
    with pytest.raises(TaskFailed, match="has no file URLs for s3://bucket/model"):
        fetch(Model(source="s3://bucket/model"), runtime)


def test_a_hub_source_without_a_repository_is_refused(runtime: TaskRuntime) -> None:
    with pytest.raises(TaskFailed, match="hf://name does not have the form"):
        fetch(Model(source="hf://name"), runtime)


@pytest.mark.parametrize(
    ("name", "objective", "first", "count"),
    [
        ("llama", CAUSAL, WeightShape(name="model.layers.0.self_attn.q_proj", d_out=32, d_in=32), 8),
        ("gpt2", CAUSAL, WeightShape(name="transformer.h.0.attn.c_attn", d_out=96, d_in=32), 4),
        ("bert", CLASSES, WeightShape(name="bert.encoder.layer.0.attention.self.query", d_out=32, d_in=32), 8),
        ("mpnet", CLASSES, WeightShape(name="mpnet.encoder.layer.0.attention.attn.q", d_out=32, d_in=32), 8),
        ("t5", SEQ2SEQ, WeightShape(name="encoder.block.0.layer.0.SelfAttention.q", d_out=32, d_in=32), 24),
    ],
)
def test_the_attention_weights_of_each_architecture_are_found(
    toy: Toy, name: str, objective: Objective, first: WeightShape, count: int
) -> None:
    weights = facts(toy(name), objective, ()).weights

    assert weights[0] == first
    assert len(weights) == count


def test_an_unknown_architecture_is_an_error_that_names_it_and_says_what_to_do() -> None:
    with pytest.raises(TaskFailed, match=r"model type 'mamba'.*planning\.targetModules"):
        target_weights(torch.nn.Sequential(torch.nn.Linear(2, 2)), "mamba", ())


def test_named_target_modules_replace_those_of_the_architecture(toy: Toy) -> None:
    weights = facts(toy("llama"), CAUSAL, ("down_proj",)).weights

    assert [(weight.name, weight.d_out, weight.d_in) for weight in weights] == [
        ("model.layers.0.mlp.down_proj", 32, 64),
        ("model.layers.1.mlp.down_proj", 32, 64),
    ]


def test_target_modules_that_match_no_layer_are_refused(toy: Toy) -> None:
    with pytest.raises(TaskFailed, match="ends in wide_proj"):
        facts(toy("llama"), CAUSAL, ("wide_proj",))


def test_the_number_of_labels_is_minus_one_in_the_shapes_of_the_head(toy: Toy) -> None:
    assert facts(toy("llama"), CAUSAL, ()).head == {}
    assert facts(toy("llama"), CLASSES, ()).head == {"base_model.model.score.weight": (-1, 32)}
    assert facts(toy("mpnet"), CLASSES, ()).head == {
        "base_model.model.classifier.dense.weight": (32, 32),
        "base_model.model.classifier.dense.bias": (32,),
        "base_model.model.classifier.out_proj.weight": (-1, 32),
        "base_model.model.classifier.out_proj.bias": (-1,),
    }


def test_the_head_in_the_facts_is_the_loaded_one_even_if_the_checkpoint_has_no_pooler(toy: Toy) -> None:
    head = facts(toy("bert"), CLASSES, ()).head
    loaded = load(toy("bert"), 4, CLASSES)

    assert set(head) == {f"base_model.model.{name}" for name in loaded.head}
    assert "bert.pooler.dense.weight" in loaded.head


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("name", ["bert", "mpnet", "llama", "gpt2"])
def test_a_classifier_runs_at_every_bit_width_with_its_head_in_full_precision(toy: Toy, name: str, bits: Bits) -> None:
    base = load(toy(name), bits, CLASSES)
    ids = torch.arange(1, 9).reshape(2, 4)

    logits = base.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    assert logits.shape == (2, 3)
    assert {base.model.get_parameter(name).dtype for name in base.head} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_fewer_bits_take_fewer_bytes(toy: Toy) -> None:
    sizes = [load(toy("llama"), bits, CAUSAL).memory_bytes for bits in ALL_BITS]

    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4


def test_a_language_model_without_all_its_weights_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "layer_types": None}))

    with pytest.raises(TaskFailed, match=r"no weights for model\.layers\.2\."):
        load(copy, 32, CAUSAL)


def test_a_base_is_cached_for_the_next_task_with_the_same_base(toy: Toy) -> None:
    clear_cache()
    first = load_cached(toy("llama"), 16, CAUSAL)

    assert load_cached(toy("llama"), 16, CAUSAL) is first
    assert load_cached(toy("llama"), 32, CAUSAL) is not first
    assert load_cached(toy("llama"), 16, CAUSAL) is not first
    clear_cache()


def test_the_type_of_the_checkpoint_is_read(toy: Toy) -> None:
    assert checkpoint_dtype(toy("llama")) is torch.float32


def test_a_local_model_loads_with_every_socket_blocked(toy: Toy) -> None:
    script = f"""
import os, socket
os.environ.pop("HF_HUB_OFFLINE", None)
def blocked(*_, **__): raise AssertionError("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = blocked
from pathlib import Path
from fedpipe_trainer.contract import CausalLM
from fedpipe_trainer.model import facts, load
for bits in (4, 32):
    load(Path({str(toy("llama"))!r}), bits, CausalLM(prompt="{{a}}", response="{{b}}"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_a_model_at_urls_is_downloaded_again_after_a_change(toy: Toy, runtime: TaskRuntime) -> None:
    def model(name: str, revision: str) -> Model:
        files = {path.name: f"file://{path}" for path in toy(name).iterdir()}
        return Model(source="s3://bucket/changing", files=files, revision=revision * 64)

    before = fingerprint(fetch(model("llama", "a"), runtime))
    after = fingerprint(fetch(model("gpt2", "b"), runtime))

    assert (before, after) == (fingerprint(toy("llama")), fingerprint(toy("gpt2")))


@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("model.layers.3.self_attn.q_proj", 3),
        ("transformer.h.1.attn.c_attn", 1),
        ("mpnet.encoder.layer.11.attention.attn.q", 11),
        ("encoder.block.1.layer.0.SelfAttention.q", 1),
        ("decoder.block.0.layer.1.EncDecAttention.q", 2),
        ("model.decoder.layers.2.self_attn.q_proj", 4),
        ("score", 0),
    ],
)
def test_layers_are_counted_from_the_input_and_a_decoder_follows_its_encoder(weight: str, layer: int) -> None:
    assert layer_of(weight, encoder_layers=2) == layer

"""Complete tasks, from the task file to the result, in real trainer processes on toy models."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from toys import make_toy
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from fedpipe_trainer.contract import (
    Basis,
    CausalLM,
    Data,
    DataPolicy,
    DryExportResult,
    DryExportTask,
    EvaluateResult,
    EvaluateTask,
    Evaluation,
    ExportResult,
    ExportTask,
    FailureReason,
    Forecast,
    GlobalAdapter,
    Hyperparameters,
    Model,
    Objective,
    Outcome,
    Plan,
    Preference,
    ProfileResult,
    ProfileTask,
    Progress,
    Result,
    RunRef,
    Seq2SeqLM,
    SequenceClassification,
    TrainResult,
    TrainTask,
    parse_result,
)
from fedpipe_trainer.transfer import describe

Toy = Callable[[str], Path]
RUN = RunRef(namespace="n", name="r", uid="u")
LABELS = ("high", "low")


@dataclass(frozen=True)
class Case:
    """An objective, a toy model for it, and the ranks of some of its weights."""

    toy: str
    objective: Objective
    ranks: dict[str, int]
    auto: Any
    whole: tuple[str, ...] = ()
    """Modules that are trained whole."""
    mu: float = 0.0
    """Of the proximal term."""


CLASSES = SequenceClassification(labels=LABELS, max_length=32)
LANGUAGE = CausalLM(prompt="{text}:", response="{answer}", max_length=32, slot_pattern=r"is (\w+)")
REWRITING = Seq2SeqLM(prompt="{text}", response="{answer}", max_length=32)
CHOICES = Preference(prompt_column="text", max_length=32, beta=0.5)
LLAMA = {"model.layers.0.self_attn.q_proj": 4, "model.layers.1.mlp.down_proj": 2, "model.layers.1.self_attn.v_proj": 0}
CASES = {
    "causal-llama": Case("llama", LANGUAGE, LLAMA, AutoModelForCausalLM),
    "causal-llama-whole": Case("llama", LANGUAGE, LLAMA, AutoModelForCausalLM, ("embed_tokens", "lm_head", "norm")),
    "causal-gpt2": Case("gpt2", LANGUAGE, {"transformer.h.0.attn.c_attn": 4, "transformer.h.1.mlp.c_fc": 2}, AutoModelForCausalLM),
    "classes-bert": Case(
        "bert",
        CLASSES,
        {"bert.encoder.layer.0.attention.self.query": 4, "bert.encoder.layer.1.output.dense": 2},
        AutoModelForSequenceClassification,
    ),
    "classes-llama": Case("llama", CLASSES, LLAMA, AutoModelForSequenceClassification),
    "pairs-llama": Case("llama", CHOICES, LLAMA, AutoModelForCausalLM),
    "seq2seq-t5": Case(
        "t5",
        REWRITING,
        {"encoder.block.0.layer.0.SelfAttention.q": 4, "decoder.block.1.layer.1.EncDecAttention.v": 2},
        AutoModelForSeq2SeqLM,
    ),
}
CAUSAL = CASES["causal-llama"]
PAIRS = CASES["pairs-llama"]
PROXIMAL = replace(CASES["classes-llama"], mu=0.5)


METRICS = {"SequenceClassification": {"accuracy", "macroF1"}, "Preference": {"preferenceAccuracy", "rewardMargin"}}
"""Of the task types that generate nothing."""


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """A site's data: 200 training rows, and 24 validation rows with two answers to each prompt."""
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(200)))
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row(i // 2)) + "\n" for i in range(24)))
    return Data(train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "validation.jsonl"))


def row(i: int) -> dict[str, str]:
    label, other = LABELS[i % 2], LABELS[1 - i % 2]
    return {"text": f"{label}: {i} is {label}", "label": label, "answer": f"{label} {label}", "chosen": label, "rejected": other}


@dataclass(frozen=True)
class Site:
    """Makes the tasks of one site and reads their results."""

    case: Case
    model: Path
    data: Data
    folder: Path

    def url(self, name: str) -> str:
        return (self.folder / "store" / name).as_uri()

    def common(self, name: str) -> dict[str, Any]:
        model = Model(source=self.model.as_uri(), modules_to_save=self.case.whole)
        return {"run": RUN, "site": "a", "round": 1, "model": model, "objective": self.case.objective, "result": self.url(f"{name}.json")}

    def consent(self) -> dict[str, Any]:
        """The data, and a policy that allows the task and shows what it asks for."""
        return {"data": self.data, "contributors": 2, "policy": DataPolicy(max_shown_rows=2)}

    def train(self, name: str = "train", steps: int = 20, **changed: Any) -> TrainTask:
        plan = Plan(
            bits=32,
            batch_size=4,
            steps=steps,
            ranks=self.case.ranks,
            forecast=Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0),
        )
        hyper = Hyperparameters(learning_rate=0.005, dropout=0.1, seed=1, proximal_mu=self.case.mu)
        adapter = self.url(f"{name}.safetensors")
        return TrainTask(**{**self.common(name), **self.consent(), "plan": plan, "hyperparameters": hyper, "adapter": adapter, **changed})

    def evaluate(self, name: str, adapter: GlobalAdapter | None = None, **changed: Any) -> EvaluateTask:
        evaluation = Evaluation(max_samples=20, generations=4, max_new_tokens=8, samples=2)
        fields = {**self.common(name), **self.consent(), "bits": 32, "batch_size": 4, "evaluation": evaluation, "global_adapter": adapter}
        return EvaluateTask(**{**fields, **changed})

    def dry_export(self) -> DryExportTask:
        return DryExportTask(**self.common("dry-export"), ranks={weight: rank for weight, rank in self.case.ranks.items() if rank})

    def export(self, adapter: GlobalAdapter) -> ExportTask:
        """What the dry export found."""
        found = self.result("dry-export")
        assert isinstance(found, DryExportResult)
        files = {"adapter": found.adapter, "merged": found.merged}
        adapter_files, merged_files = ({one.name: self.url(f"{kind}/{one.name}") for one in files[kind]} for kind in files)
        return ExportTask(**self.common("export"), global_adapter=adapter, adapter_files=adapter_files, merged_files=merged_files)

    def result(self, name: str) -> Result:
        return parse_result((self.folder / "store" / f"{name}.json").read_text())

    def global_adapter(self, update: TrainResult, name: str = "train") -> GlobalAdapter:
        """The average over this single site: its factors, with B multiplied by the scale."""
        tensors = load_file(self.folder / "store" / f"{name}.safetensors")
        for weight, scale in update.scales.items():
            tensors[f"base_model.model.{weight}.lora_B.weight"] *= scale
        path = self.folder / "store" / "global.safetensors"
        save_file(tensors, path)
        artifact = describe(path)
        return GlobalAdapter(url=path.as_uri(), sha256=artifact.sha256, size=artifact.size)


@pytest.fixture
def site(request: pytest.FixtureRequest, toy: Toy, data: Data, tmp_path: Path) -> Site:
    case = getattr(request, "param", CAUSAL)
    return Site(case, toy(case.toy), data, tmp_path)


every_case = pytest.mark.parametrize("site", CASES.values(), ids=CASES, indirect=True)


def test_a_model_of_one_layer_is_trained(site: Site, trainer: Any, tmp_path: Path) -> None:
    make_toy("llama", tmp_path / "one-layer", layers=1)
    ranks = {weight: rank for weight, rank in site.case.ranks.items() if ".layers.0." in weight}
    one_layer = replace(site, model=tmp_path / "one-layer", case=replace(site.case, ranks=ranks))

    assert ranks
    assert trainer.perform(one_layer.train(steps=2), site.folder / "1") == 0

    result = one_layer.result("train")
    assert isinstance(result, TrainResult)
    assert (result.steps, result.ranks) == (2, ranks)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
@every_case
def test_a_round_from_training_to_the_merged_model(site: Site, trainer: Any) -> None:
    assert trainer.perform(site.evaluate("base"), site.folder / "0") == 0
    assert trainer.perform(site.dry_export(), site.folder / "dry") == 0
    assert trainer.perform(site.train(), site.folder / "1") == 0
    update = site.result("train")
    assert isinstance(update, TrainResult)
    adapter = site.global_adapter(update)
    assert trainer.perform(site.evaluate("after", adapter), site.folder / "2") == 0
    assert trainer.perform(site.export(adapter), site.folder / "3") == 0

    check_update(site, update)
    check_evaluations(site)
    check_export(site)


def check_update(site: Site, update: TrainResult) -> None:
    assert update.outcome is Outcome.COMPLETED
    assert update.adapter == describe(site.folder / "store" / "train.safetensors").model_copy(update={"name": "adapter.safetensors"})
    assert update.ranks == {weight: rank for weight, rank in site.case.ranks.items() if rank}
    assert (update.steps, update.samples, len(update.losses)) == (20, 80, 20)
    assert sum(update.losses[-5:]) < sum(update.losses[:5])
    assert update.measured.uploaded_bytes == update.adapter.size
    assert update.measured.peak_memory_bytes > 100_000_000
    assert set(update.measured.seconds) >= {"load", "train", "transfer"}


def check_evaluations(site: Site) -> None:
    base, after = site.result("base"), site.result("after")
    assert isinstance(base, EvaluateResult)
    assert isinstance(after, EvaluateResult)
    assert base.loss is not None
    assert after.loss is not None
    assert after.loss < base.loss
    assert (after.samples, after.targets, len(after.examples)) == (20, base.targets, 2)
    assert [sample.text for sample in after.examples] == [sample.text for sample in base.examples]  # the same rows in every round
    expected = METRICS.get(site.case.objective.type, {"perplexity", "bleu", "rougeL"})
    slots = {"slotErrorRate"} if site.case.objective == LANGUAGE else set()
    assert set(after.metrics) == expected | slots


def check_export(site: Site) -> None:
    result = site.result("export")
    assert isinstance(result, ExportResult)
    assert result.max_logit_difference is not None
    assert result.max_logit_difference < 1e-4
    labels = {"num_labels": len(LABELS)} if site.case.objective == CLASSES else {}
    store = site.folder / "store"
    adapted = PeftModel.from_pretrained(site.case.auto.from_pretrained(site.model, **labels), store / "adapter").eval()
    merged = site.case.auto.from_pretrained(store / "merged").eval()
    batch = {"input_ids": torch.arange(40).reshape(2, 20)}
    decoder_inputs = {"decoder_input_ids": batch["input_ids"]} if site.case.objective == REWRITING else {}
    with torch.no_grad():
        assert torch.allclose(adapted(**batch, **decoder_inputs).logits, merged(**batch, **decoder_inputs).logits, atol=1e-4)


def run_process(task_file: Path) -> "subprocess.CompletedProcess[str]":
    """Perform one task in a new process, with as many threads as the serving trainer, since equal bytes require that."""
    command, one_thread = [sys.executable, "-m", "fedpipe_trainer", task_file], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)


def test_the_same_task_gives_the_same_bytes_in_another_process(site: Site, trainer: Any) -> None:
    assert trainer.perform(site.train("here"), site.folder / "1") == 0
    (site.folder / "there-task.json").write_text(site.train("there").to_json())
    ended = run_process(site.folder / "there-task.json")

    assert ended.returncode == 0, ended.stderr
    assert [Progress.model_validate_json(line).phase for line in ended.stdout.splitlines()] == ["load"] + ["train"] * 20
    here, there = ((site.folder / "store" / f"{name}.safetensors").read_bytes() for name in ("here", "there"))
    assert here == there


@pytest.mark.parametrize(
    "site", [CAUSAL, PAIRS, CASES["causal-llama-whole"], PROXIMAL], ids=["causal", "pairs", "whole modules", "proximal term"], indirect=True
)
def test_a_stopped_task_resumes_and_ends_with_the_same_bytes(site: Site, trainer: Any, another_trainer: Any) -> None:
    checkpoint_urls = {"checkpoint_read": site.url("checkpoint"), "checkpoint_write": site.url("checkpoint")}
    # The small pipe fills up, so the trainer gets at most a few dozen steps ahead of this test.
    fcntl.fcntl(another_trainer.process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    another_trainer.start(site.train("stopped", steps=120, **checkpoint_urls), site.folder / "1")
    while another_trainer.read_line().get("step", 0) < 3:
        pass
    another_trainer.process.send_signal(signal.SIGTERM)

    assert another_trainer.wait() == 143
    assert another_trainer.process.wait() == 143
    stopped = site.result("stopped")
    assert stopped.failure is not None
    assert stopped.failure.reason is FailureReason.TERMINATED
    assert trainer.perform(site.train("resumed", steps=120, attempt=1, **checkpoint_urls), site.folder / "2") == 0
    assert trainer.perform(site.train("undisturbed", steps=120), site.folder / "3") == 0
    resumed = site.result("resumed")
    assert isinstance(resumed, TrainResult)
    assert 3 <= resumed.resumed_from_step < 120
    assert (resumed.steps, len(resumed.losses)) == (120, 120)
    adapters = [(site.folder / "store" / f"{name}.safetensors").read_bytes() for name in ("resumed", "undisturbed")]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("site", [CAUSAL, PAIRS], ids=["causal", "pairs"], indirect=True)
def test_a_profile_measures_every_requested_bit_width(site: Site, trainer: Any) -> None:
    basis = Basis(measured="a", whole="b")
    task = ProfileTask(**{**site.common("profile"), "round": 0}, **site.consent(), bits=(16, 32), batch_sizes=(1, 2), rank=2, basis=basis)

    assert trainer.perform(task, site.folder / "1") == 0

    profile = site.result("profile")
    assert isinstance(profile, ProfileResult)
    assert profile.base is not None
    assert profile.basis == basis
    assert (profile.train_samples, profile.validation_samples) == (200, 24)
    assert {point.bits for point in profile.throughput} == {16, 32}


def test_a_profile_that_failed_says_what_it_was_made_for(site: Site, trainer: Any) -> None:
    Path(site.data.train).unlink()
    basis = Basis(measured="a", whole="b")

    trainer.perform(ProfileTask(**{**site.common("profile"), "round": 0}, **site.consent(), bits=(16,), basis=basis), site.folder / "1")

    failed = site.result("profile")
    assert isinstance(failed, ProfileResult)
    assert (failed.outcome, failed.basis) == (Outcome.FAILED, basis)


def test_a_missing_data_file_is_an_error_that_names_it(site: Site, trainer: Any) -> None:
    Path(site.data.train).unlink()

    assert trainer.perform(site.train(), site.folder / "1") == 3
    assert_failed(site, FailureReason.BAD_DATA, f"the data file {site.data.train} cannot be read: No such file or directory")


def test_rows_that_are_not_utf8_are_counted(site: Site, trainer: Any) -> None:
    with Path(site.data.train).open("ab") as file:
        file.write(b'{"text": "caf\xe9", "label": "low", "answer": "low"}\n')

    assert trainer.perform(site.train(steps=1), site.folder / "1") == 0
    update = site.result("train")
    assert isinstance(update, TrainResult)
    assert update.skipped_rows == 1


@pytest.mark.parametrize("site", [CASES["classes-bert"]], ids=["classes-bert"], indirect=True)
def test_rows_of_a_label_that_the_run_did_not_derive_are_neither_trained_nor_evaluated_and_counted(site: Site, trainer: Any) -> None:
    for path, count in ((site.data.train, 3), (site.data.validation, 2)):
        with Path(path).open("a") as file:
            file.writelines(json.dumps(row(at) | {"label": "canary"}) + "\n" for at in range(count))
    derived = CLASSES.model_copy(update={"drops_other_labels": True})

    assert trainer.perform(site.train(steps=1, objective=derived), site.folder / "1") == 0
    assert trainer.perform(site.evaluate("evaluate", objective=derived), site.folder / "2") == 0

    update, evaluation = site.result("train"), site.result("evaluate")
    assert isinstance(update, TrainResult)
    assert isinstance(evaluation, EvaluateResult)
    assert (update.dropped_rows, update.skipped_rows) == (3, 0)
    assert (evaluation.dropped_rows, evaluation.samples) == (2, 20)


@pytest.mark.parametrize("site", [CASES["classes-bert"]], ids=["classes-bert"], indirect=True)
def test_a_row_of_a_label_that_the_run_does_not_declare_is_an_error(site: Site, trainer: Any) -> None:
    with Path(site.data.train).open("a") as file:
        file.write(json.dumps(row(0) | {"label": "canary"}) + "\n")

    assert trainer.perform(site.train(steps=1), site.folder / "1") == 3
    assert_failed(
        site, FailureReason.BAD_DATA, f"1 of 201 rows of {site.data.train}, the first at line 201, have in column 'label' none of"
    )


def test_a_model_folder_without_a_tokenizer_is_an_error_that_names_it(site: Site, trainer: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(site.model / name)

    assert trainer.perform(site.train(model=Model(source=bare.as_uri())), site.folder / "1") == 4
    assert_failed(site, FailureReason.BAD_MODEL, f"the model folder {bare} has no tokenizer.json")


def test_a_global_adapter_with_another_hash_is_refused(site: Site, trainer: Any) -> None:
    assert trainer.perform(site.train("first", steps=1), site.folder / "1") == 0
    other = GlobalAdapter(url=site.url("first.safetensors"), sha256="0" * 64, size=1)

    assert trainer.perform(site.train(global_adapter=other), site.folder / "2") == 10
    assert_failed(site, FailureReason.TRANSFER_FAILED, "the task says 0000")


def test_a_full_disk_of_the_store_is_reported_in_the_result(site: Site, trainer: Any, full_disk: Path) -> None:
    (full_disk / "filler").write_bytes(bytes(65_536))

    assert trainer.perform(site.train(steps=1, adapter=(full_disk / "a").as_uri()), site.folder / "1") == 10
    assert_failed(site, FailureReason.TRANSFER_FAILED, f"cannot write {full_disk}/a: No space left on device")
    assert [path.name for path in full_disk.iterdir()] == ["filler"]


def test_a_result_that_cannot_be_written_is_reported_in_the_log(site: Site, trainer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    url = (tmp_path / "file" / "result.json").as_uri()

    assert trainer.perform(site.evaluate("e", result=url), site.folder / "1") == 10
    assert f"cannot write the result: cannot write {tmp_path}/file/result.json" in (site.folder / "1" / "log").read_text()


def test_a_label_that_the_run_does_not_have_is_an_error_that_names_its_line(toy: Toy, data: Data, tmp_path: Path, trainer: Any) -> None:
    site = Site(CASES["classes-bert"], toy("bert"), data, tmp_path)
    task = site.evaluate("e", objective=SequenceClassification(labels=("high", "middle")))

    assert trainer.perform(task, site.folder / "1") == 3
    failure = site.result("e").failure
    assert failure is not None
    assert "12 of 24 rows of" in failure.message
    assert re.search(r"the first at line \d+, have in column 'label' none of the run's 2 labels", failure.message)
    assert "low" not in failure.message


def test_no_row_leaves_the_site_unless_the_run_requests_it(site: Site, trainer: Any) -> None:
    assert (
        trainer.perform(site.evaluate("e", evaluation=Evaluation(max_samples=4, generations=2, max_new_tokens=4)), site.folder / "1") == 0
    )

    result = site.result("e")
    assert isinstance(result, EvaluateResult)
    assert result.examples == ()


def test_an_evaluation_past_its_deadline_is_reported(site: Site, trainer: Any) -> None:
    assert trainer.perform(site.evaluate("e", deadline_seconds=1e-6), site.folder / "1") == 143
    failure = site.result("e").failure
    assert failure is not None
    assert "did not end within" in failure.message


def assert_failed(site: Site, reason: FailureReason, message: str) -> None:
    result = site.result("train")
    assert result.outcome is Outcome.FAILED
    assert result.failure is not None
    assert result.failure.reason is reason
    assert message in result.failure.message

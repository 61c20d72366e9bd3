"""The export recipe: ranks that differ by weight, heads, 16-bit checkpoints, and files without a URL."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import run_export
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fedpipe_trainer.contract import CausalLM, FailureReason, Objective, SequenceClassification
from fedpipe_trainer.errors import TaskFailed

Toy = Callable[[str], Path]
CAUSAL = CausalLM(prompt="{a}", response="{b}")
CLASSES = SequenceClassification(labels=("red", "green", "blue"))
IDS = torch.arange(4, 24).reshape(2, 10)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
@pytest.mark.parametrize(
    ("name", "objective", "auto"),
    [
        ("llama", CAUSAL, AutoModelForCausalLM),
        ("gpt2", CAUSAL, AutoModelForCausalLM),
        ("llama", CLASSES, AutoModelForSequenceClassification),
        ("mpnet", CLASSES, AutoModelForSequenceClassification),
        ("bert", CLASSES, AutoModelForSequenceClassification),
    ],
)
def test_the_adapter_folder_and_the_merged_model_are_the_same_model(
    toy: Toy, tmp_path: Path, name: str, objective: Objective, auto: Any
) -> None:
    result = run_export(toy(name), objective, tmp_path)

    labels = {"num_labels": 3} if objective == CLASSES else {}
    base = auto.from_pretrained(toy(name), **labels)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = auto.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert torch.allclose(adapted(IDS).logits, merged(IDS).logits, atol=1e-3, rtol=1e-4)
    assert result.max_logit_difference is not None
    assert result.max_logit_difference < 1e-3
    assert adapted.peft_config["default"].r == adapted.peft_config["default"].lora_alpha == (4 if name == "gpt2" else 5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").decode([104, 105])


def test_the_merged_classifier_has_the_labels(toy: Toy, tmp_path: Path) -> None:
    run_export(toy("mpnet"), CLASSES, tmp_path)

    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").config
    assert config.id2label == {0: "red", 1: "green", 2: "blue"}
    assert config.label2id == {"red": 0, "green": 1, "blue": 2}


def test_the_merged_model_has_the_type_of_the_checkpoint(toy: Toy, tmp_path: Path) -> None:
    half = Path(shutil.copytree(toy("llama"), tmp_path / "half"))
    AutoModelForCausalLM.from_pretrained(toy("llama"), dtype=torch.bfloat16).save_pretrained(half)

    result = run_export(half, CAUSAL, tmp_path)

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype is torch.bfloat16
    assert result.max_logit_difference is not None
    assert 0 < result.max_logit_difference < 0.5


def test_a_file_that_the_dry_export_did_not_find_is_an_error_that_names_it(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match=r"the export made .*model\.safetensors.*which the dry export did not find") as failed:
        run_export(toy("llama"), CAUSAL, tmp_path, merged_files={"config.json": (tmp_path / "config.json").as_uri()})

    assert failed.value.reason is FailureReason.BAD_TASK


def test_only_files_with_urls_are_exported(toy: Toy, tmp_path: Path) -> None:
    result = run_export(toy("llama"), CAUSAL, tmp_path, merged_files={})

    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "README.md"} < {one.name for one in result.adapter}
    assert result.merged == ()
    assert result.max_logit_difference is None

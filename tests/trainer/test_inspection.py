"""What a trainer answers about files of this machine: `--inspect`, as `fedpipe init` asks it."""

import io
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from chat_templates import CHATML
from hub_stand_in import COMMIT, Hub
from pydantic import ValidationError

from fedpipe_trainer import __main__ as command_line
from fedpipe_trainer.contract import ExitCode, FailureReason
from fedpipe_trainer.contract.inspection import HeldOut, HoldOutQuestion, Inspection, InspectQuestion, ModelFacts, one_line
from fedpipe_trainer.inspection import answer
from fedpipe_trainer.settings import Settings

Toy = Callable[[str], Path]


@pytest.fixture
def inspect(tmp_path: Path) -> Callable[[str], ModelFacts]:
    """What is found of a model."""
    (tmp_path / "notes.jsonl").write_text('{"text": "a note"}\n')

    def ask(model: str) -> ModelFacts:
        question = InspectQuestion(data=(str(tmp_path / "notes.jsonl"),), model=model)
        found = Inspection.model_validate_json(answer(question.to_json(), Settings(cache=tmp_path / "cache"))).model
        assert found is not None
        return found

    return ask


@pytest.fixture
def hub(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(toy("llama")) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served
        served.shutdown()


@pytest.mark.parametrize(
    ("name", "kind", "positions"),
    [
        ("llama", "decoder", None),
        ("gpt2", "decoder", 256),
        ("bert", "encoder", 256),
        ("mpnet", "encoder", 512),
        ("t5", "encoder-decoder", None),
    ],
)
def test_a_model_is_described_by_its_configuration(
    toy: Toy, inspect: Callable[[str], ModelFacts], name: str, kind: str, positions: int | None
) -> None:
    found = inspect(str(toy(name)))

    assert (found.architecture, found.kind, found.positions, found.failure) == (name, kind, positions, None)
    assert not found.has_chat_template
    assert found.has_default_targets


def test_a_chat_template_and_the_labels_of_a_classifier_are_found(toy: Toy, inspect: Callable[[str], ModelFacts], tmp_path: Path) -> None:
    model = shutil.copytree(toy("llama"), tmp_path / "model")
    (model / "chat_template.jinja").write_text(CHATML)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"id2label": {"0": "calm", "1": "angry"}}))

    found = inspect(str(model))

    assert found.has_chat_template
    assert found.labels == ("calm", "angry")


def test_no_weight_of_a_model_is_read(toy: Toy, inspect: Callable[[str], ModelFacts], tmp_path: Path) -> None:
    model = shutil.copytree(toy("llama"), tmp_path / "model")
    weights = model / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(header)
        file.truncate(size)  # a hole where the weights were

    assert inspect(str(model)).failure is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "is already quantised (config.json has quantization_config, gptq)"),
        ({"model_type": "of_tomorrow"}, "cannot be read"),
    ],
)
def test_a_model_that_cannot_be_used_is_a_failure_in_words(
    toy: Toy, inspect: Callable[[str], ModelFacts], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    model = shutil.copytree(toy("llama"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))

    failure = inspect(str(model)).failure

    assert failure is not None
    assert failure.reason is FailureReason.BAD_MODEL
    assert message in failure.message


def test_a_model_of_a_hub_is_described_with_its_commit_and_without_its_weights(hub: Hub, inspect: Callable[[str], ModelFacts]) -> None:
    found = inspect("hf://org/toy@main")

    assert (found.architecture, found.kind, found.commit, found.failure) == ("llama", "decoder", COMMIT, None)
    assert hub.bytes_sent < (hub.folder / "model.safetensors").stat().st_size


def test_a_gated_model_is_refused_and_a_hub_that_is_down_is_not_reached(hub: Hub, inspect: Callable[[str], ModelFacts]) -> None:
    hub.token = "needed"  # noqa: S105 - of a stand-in
    gated = inspect("hf://org/toy@main").failure
    hub.is_down = True
    down = inspect("hf://org/toy@main").failure

    assert gated is not None
    assert gated.reason is FailureReason.BAD_MODEL
    assert down is not None
    assert down.reason is FailureReason.TRANSFER_FAILED


def test_what_is_no_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        answer('{"kind": "inspect"}', Settings(cache=tmp_path))


def test_rows_that_cannot_be_written_are_a_failure_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    train = str(tmp_path / "nowhere" / "train.jsonl")
    question = HoldOutQuestion(data=str(tmp_path / "notes.jsonl"), columns=("text",), train=train, validation=train)

    found = HeldOut.model_validate_json(answer(question.to_json(), Settings(cache=tmp_path)))

    assert found.failure is not None
    assert found.failure.message == f"{train} cannot be read or written (No such file or directory): check its permissions and the disk"


@pytest.mark.parametrize(("last", "status"), [("", ExitCode.OK), ("no question\n", ExitCode.BAD_TASK)])
def test_each_line_of_standard_input_is_a_question_that_is_answered_by_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, status: ExitCode
) -> None:
    data = [tmp_path / name for name in ("a \u2028 b.jsonl", "c.jsonl")]
    for path in data:
        path.write_text('{"text": "a note"}\n')
    out = io.StringIO()
    monkeypatch.setattr(command_line, "reserve_stdout", lambda: nullcontext(out))
    questions = [one_line(InspectQuestion(data=(str(path),)).to_json()) for path in data]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{question}\n" for question in questions) + last))

    assert command_line.main(["--inspect"]) == status
    answers = [Inspection.model_validate_json(line) for line in out.getvalue().removesuffix("\n").split("\n")]
    assert [one.train for found in answers for one in found.data] == list(map(str, data))

"""Each fault of a site that was found by trying costs that site alone: a whole run of three, with a quorum of two, ends unharmed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hostile_runs import is_missing_somewhere, read, require_unharmed, run_with
from safetensors.numpy import load, save
from trainer_results import evaluation_within, path_of

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundCommit
from fedpipe_trainer.contract import ProfileTask, TrainTask

HUGE: Final = "x" * 900_000
NUMBERS: Final = {
    "NaN": "NaN",
    "infinity": "Infinity",
    "-infinity": "-Infinity",
    "1e400": "1e400",
    "denormal": "1e-320",
    "many digits": "9" * 100_000,
    "huge text": json.dumps(HUGE),
    "half a surrogate pair": '"\\ud800"',
}
FIELDS: Final = {"profile": "mean_tokens", "update": "train_loss", "evaluation": "loss"}
"""A number of each result."""


def result_file(task: Any, result: str) -> Path | None:
    """Where the task's result of this kind is, if it writes one."""
    if isinstance(task, TrainTask):
        within = evaluation_within(task)
        return {"update": path_of(task.result), "evaluation": path_of(within.result) if within else None}.get(result)
    kind = "profile" if isinstance(task, ProfileTask) else "evaluation"
    return path_of(task.result) if kind == result else None


def rewriting(result: str, change: Callable[[dict[str, Any]], str]) -> Callable[[Any], None]:
    """Replaces each result of this kind by a text."""

    def tamper(task: Any) -> None:
        file = result_file(task, result)
        if file is not None and file.exists():
            file.write_text(change(json.loads(file.read_text())))

    return tamper


def with_number(field: str, number: str) -> Callable[[dict[str, Any]], str]:
    """The result with this number in the field, and in a field within."""

    def change(found: dict[str, Any]) -> str:
        camel = "".join(part.title() if at else part for at, part in enumerate(field.split("_")))
        assert camel in found
        return json.dumps(found | {camel: "the number"}).replace('"the number"', number)

    return change


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize("result", FIELDS)
def test_a_number_that_is_none_costs_its_site_alone_and_every_record_can_be_read_again(tmp_path: Path, result: str, number: str) -> None:
    world = run_with(tmp_path, rewriting(result, with_number(FIELDS[result], number)))

    require_unharmed(world)
    assert is_missing_somewhere(world)


@pytest.mark.parametrize("key", [HUGE, "\u0000", "\ud800", "\u001b[31m"], ids=["huge", "NUL", "surrogate", "escape"])
@pytest.mark.parametrize("result", FIELDS)
def test_a_key_of_any_text_costs_its_site_alone(tmp_path: Path, result: str, key: str) -> None:
    world = run_with(tmp_path, rewriting(result, lambda found: json.dumps(found | {"software": {key: "1"}})))

    require_unharmed(world)
    assert is_missing_somewhere(world)


@pytest.mark.parametrize("result", FIELDS)
def test_a_result_of_40_mb_costs_its_site_alone(tmp_path: Path, result: str) -> None:
    world = run_with(tmp_path, rewriting(result, lambda found: json.dumps(found) + " " * 40_000_000))

    require_unharmed(world)
    assert is_missing_somewhere(world)


def adapters(change: Callable[[bytes], bytes]) -> Callable[[Any], None]:
    """Replaces each adapter, and has the result state it as it is."""

    def tamper(task: Any) -> None:
        if not isinstance(task, TrainTask) or not path_of(task.adapter).exists():
            return
        data = change(path_of(task.adapter).read_bytes())
        path_of(task.adapter).write_bytes(data)
        result = json.loads(path_of(task.result).read_text())
        stated = {"name": "adapter.safetensors", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        path_of(task.result).write_text(json.dumps(result | {"adapter": stated}))

    return tamper


def with_header(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The file with another header, whose length it states."""

    def changed(data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        header = change(data[8:end])
        return len(header).to_bytes(8, "little") + header + data[end:]

    return changed


def with_tensors(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes], bytes]:
    """The file with other values in each tensor."""
    return lambda data: save({key: change(tensor).astype(np.float32) for key, tensor in load(data).items()})


ADAPTERS: Final = {
    "offsets that overlap": ("Malformed", with_header(lambda header: header.replace(b'"data_offsets":[', b'"data_offsets":[0,4],"x":['))),
    "a hole": ("Malformed", lambda data: data + bytes(4)),
    "a header of 39 MB": ("TooLarge", with_header(lambda header: header + b" " * 39_000_000)),
    "a tensor of an unprintable name": ("UnknownKey", with_header(lambda header: header.replace(b"classifier", b"\\ud800"))),
    "an unknown tensor": ("UnknownKey", lambda data: save(load(data) | {"more": np.zeros(1, np.float32)})),
    "no tensor": ("MissingKey", lambda _data: save({})),
    "NaN in tensors": ("NotFinite", with_tensors(lambda tensor: tensor * np.nan)),
    "infinities in tensors": ("NotFinite", with_tensors(lambda tensor: tensor * np.inf)),
    "half the precision": ("WrongDtype", lambda data: save({key: tensor.astype(np.float16) for key, tensor in load(data).items()})),
    "a pickle": ("Malformed", lambda _data: b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."),
    "an object of 100 MB": ("TooLarge", lambda data: data + bytes(100_000_000)),
}


@pytest.mark.parametrize(("reason", "change"), ADAPTERS.values(), ids=ADAPTERS.keys())
def test_an_adapter_that_is_none_costs_its_site_alone(tmp_path: Path, reason: str, change: Callable[[bytes], bytes]) -> None:
    world = run_with(tmp_path, adapters(change))

    require_unharmed(world)
    assert {site: one.reason for site, one in read(world, names.round_commit(1), RoundCommit).refused.items()} == {"site-b": reason}

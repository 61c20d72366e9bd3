"""TensorBoard's own reader reads the files, and their bytes follow from the figures alone."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow_servers import program

from fedpipe_operator.tracking import event_files

_READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1], size_guidance={"tensors": 0, "scalars": 0}).Reload()
scalars = {tag: [(one.step, one.wall_time, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
kinds = {tag: found.SummaryMetadata(tag).plugin_data.plugin_name for tag in texts}
print(json.dumps({"scalars": scalars, "texts": texts, "kinds": kinds, "version": found.FirstEventTimestamp()}))
"""
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
FIGURES = st.dictionaries(NAMES, st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5)
ROUNDS = st.lists(FIGURES, min_size=1, max_size=6)


def a_file(rounds: list[dict[str, float]]) -> bytes:
    return event_files.beginning(1.5) + b"".join(event_files.scalars(step, 10.0 + step, one) for step, one in enumerate(rounds))


def test_the_reader_of_tensorboard_finds_every_figure_and_the_text(tmp_path: Path) -> None:
    head = event_files.beginning(1.5) + event_files.text(0, 10.0, "run", event_files.table([("model", "a|b")]))
    figures = [{"loss": 0.5, "round/updates": 3.0}, {"loss": 0.25}, {"loss": 1e-30, "round/uploaded_bytes": 1e12}]
    rows = b"".join(event_files.scalars(step * 200, 10.0 + step, one) for step, one in enumerate(figures))
    (tmp_path / "events.out.tfevents.0000000001.fedpipe").write_bytes(head + rows)

    done = subprocess.run([program("python"), "-c", _READ, str(tmp_path)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])

    assert found["scalars"] == {
        "loss": [[0, 10.0, 0.5], [200, 11.0, 0.25], [400, 12.0, pytest.approx(1e-30)]],
        "round/updates": [[0, 10.0, 3.0]],
        "round/uploaded_bytes": [[400, 12.0, pytest.approx(1e12)]],
    }
    assert found["texts"] == {"run": "| parameter | value |\n|---|---|\n| model | a\\|b |\n"}
    assert found["kinds"] == {"run": "text"}


def test_the_checksum_is_that_of_the_standard() -> None:
    """CRC-32C of "123456789" is e3069283; a record has it masked."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    assert event_files._masked_crc(b"123456789") == masked.to_bytes(4, "little")


@settings(deadline=None)
@given(ROUNDS, st.data())
def test_a_file_that_is_cut_at_a_step_and_continued_has_the_bytes_of_one_that_never_was(
    rounds: list[dict[str, float]], data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, len(rounds) - 1))
    whole = a_file(rounds)

    assert event_files.last_step(whole) == len(rounds) - 1
    assert event_files.up_to(whole, step) == a_file(rounds[: step + 1])
    assert event_files.up_to(whole, -1) == b""


@settings(deadline=None)
@given(ROUNDS, st.data())
def test_of_a_file_that_is_damaged_what_is_before_the_damage_counts(rounds: list[dict[str, float]], data: st.DataObject) -> None:
    whole = a_file(rounds)
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]

    assert whole.startswith(event_files.up_to(damaged, 1000))
    assert len(event_files.up_to(damaged, 1000)) <= at
    assert whole.startswith(event_files.up_to(whole[:at], 1000))


def test_a_figure_beyond_float32_is_shown_as_infinite() -> None:
    assert event_files._float(2, 1e300) == event_files._float(2, float("inf"))
    assert event_files._float(2, -1e300) == event_files._float(2, float("-inf"))


def test_a_step_of_any_length_that_somebody_else_wrote_is_read_no_further_than_a_number_has_bytes() -> None:
    """Whoever owns the bucket may write megabytes of it, with the right checksum: the time would grow with their square, to hours."""
    endless = event_files._record(event_files._double(1, 0.0) + b"\x10" + b"\xff" * 400)

    last = event_files.last_step(event_files.beginning(1.5) + endless)

    assert last is not None
    assert last < 2**70

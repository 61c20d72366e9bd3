"""Adapter files written and read by range, compared with the safetensors library."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save, save_file

from fedpipe_operator.aggregation import FileSource, MalformedError
from fedpipe_operator.aggregation.tensors import CHUNK, TensorWriter, open_tensors, sha256_of

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.float32([7]), "none": np.zeros((0, 4), np.float32)}


def file_of(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def read_all(path: Path, data: bytes) -> dict[str, np.ndarray]:
    path.write_bytes(data)
    with path.open("rb") as file:
        tensors = open_tensors(FileSource(file))
        return {key: tensors.read(key) for key in tensors.entries}


def test_a_file_written_by_the_library_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "adapter.safetensors", metadata={"format": "pt"})

    tensors = read_all(tmp_path / "copy", (tmp_path / "adapter.safetensors").read_bytes())

    assert tensors.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[key], tensor)


def test_the_library_reads_what_is_written_and_the_artifact_has_its_size_and_hash(sink: io.BytesIO) -> None:
    writer = TensorWriter(sink, {key: tensor.shape for key, tensor in TENSORS.items()})
    for key, tensor in TENSORS.items():
        writer.write(key, tensor)
    artifact = writer.close("adapter.safetensors")

    tensors = load(sink.getvalue())
    assert tensors.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[key], tensor)
    assert artifact.size == len(sink.getvalue())
    assert artifact.sha256 == hashlib.sha256(sink.getvalue()).hexdigest()


def test_a_tensor_out_of_order_is_not_written(sink: io.BytesIO) -> None:
    writer = TensorWriter(sink, {"a": (1,), "b": (2, 3)})

    with pytest.raises(ValueError, match="b was written where a was expected"):
        writer.write("b", TENSORS["b"])


def test_a_tensor_of_another_shape_than_declared_is_not_written(sink: io.BytesIO) -> None:
    writer = TensorWriter(sink, {"a": (2,)})

    with pytest.raises(ValueError, match=r"float32 \(1,\), but was declared as float32 \(2,\)"):
        writer.write("a", TENSORS["a"])


def test_a_file_that_lacks_declared_tensors_gives_no_artifact(sink: io.BytesIO) -> None:
    with pytest.raises(ValueError, match="1 declared tensors were not written, the first is a"):
        TensorWriter(sink, {"a": (1,)}).close("adapter.safetensors")


def test_the_hash_is_that_of_the_whole_file_if_it_is_longer_than_a_chunk(tmp_path: Path) -> None:
    data = bytes(range(256)) * (CHUNK // 256) + b"the rest"
    (tmp_path / "long").write_bytes(data)

    with (tmp_path / "long").open("rb") as file:
        assert sha256_of(FileSource(file)) == hashlib.sha256(data).hexdigest()


def test_only_float32_is_read(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="tensor a is F16, not F32"):
        read_all(tmp_path / "file", save({"a": np.float16([1, 2])}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header's length ends after 0 of 8 bytes"),
        (b"\x01\x02", "header's length ends after 2 of 8 bytes"),
        (file_of({"a": entry()}, bytes(8))[:20], "claims"),
        ((2**63).to_bytes(8, "little"), "claims 9223372036854775808 bytes"),
        (file_of(b"{not json"), "not JSON"),
        (file_of(b"\xff\xfe\xfa"), "not JSON"),
        (file_of(b"[" * 100_000), "not JSON"),
        (file_of(b"[]"), "not a JSON object"),
        (file_of(b'{"a": {}, "a": {}}'), "has a duplicate key"),
        (file_of({"a": 7}), "entry of tensor a"),
        (file_of({"a": entry(dtype="F31")}, bytes(8)), "entry of tensor a"),
        (file_of({"a": entry(shape=[-2])}, bytes(8)), "has the invalid shape"),
        (file_of({"a": entry(shape=[True, 2])}, bytes(8)), "has the invalid shape"),
        (file_of({"a": entry(shape=[3])}, bytes(8)), "has 8 bytes"),
        (file_of({"a": entry(data_offsets=[4, 12])}, bytes(12)), "starts at byte"),
        (file_of({"a": entry(), "b": entry()}, bytes(8)), "starts at byte"),
        (file_of({"a": entry()}, bytes(7)), "the tensors end at byte"),
        (file_of({"a": entry()}, bytes(9)), "the tensors end at byte"),
    ],
)
def test_bytes_that_are_not_a_complete_file_are_malformed(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        read_all(tmp_path / "file", data)


def test_a_file_that_shrinks_after_it_was_opened_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(save({"a": np.zeros(100, np.float32)}))
    with path.open("rb") as file:
        tensors = open_tensors(FileSource(file))
        path.write_bytes(path.read_bytes()[:-4])

        with pytest.raises(MalformedError, match="tensor a ends after 396 of 400 bytes"):
            tensors.read("a")

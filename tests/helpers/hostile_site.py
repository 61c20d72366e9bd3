"""A site that sends what it likes: results and adapters with random faults of many kinds, seeded."""

import copy
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer_results import evaluation_within, path_of

from fedpipe_trainer.contract import TrainTask

NASTY: tuple[str, ...] = (
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-320", "-1", "0", "1000000000000", "9" * 5000, "1" + "0" * 30, "0.95", "2.0",
    "1e30",
    "null", "true", "[]", "{}", '""', '"\\u0000\\u001b[31m"', '"\\ud800"', '"\\u202e"', '"' + "x" * 20_000 + '"', "[" * 50 + "]" * 50,
    '"site-a"', '"Completed"', '"Failed"', "[1, 2, 3]", '{"a": 1}',
)  # fmt: skip
"""JSON values, and some texts that look like it."""


class Marked:
    """Stands where one of the texts above is written, which `json` could not write."""


def faulty_result(data: bytes, chance: random.Random) -> bytes:
    """A result with one to three faults."""
    for _ in range(chance.randint(1, 3)):
        fault = chance.choice(_OF_RESULTS)
        data = fault(data, chance)
    return data


def faulty_adapter(data: bytes, chance: random.Random) -> bytes:
    """An adapter file with one fault."""
    return chance.choice(_OF_ADAPTERS)(data, chance)


def corrupt(task: Any, chance: random.Random) -> None:
    """Put faults into what was written for this task: the result of it, and of a training the evaluation before it, or the adapter."""
    evaluation = evaluation_within(task) if isinstance(task, TrainTask) else None
    if evaluation is not None:
        _rewrite(path_of(evaluation.result), faulty_result, chance)
    if isinstance(task, TrainTask) and chance.random() < 0.5:
        file = path_of(task.adapter)
        _rewrite(file, faulty_adapter, chance)
        if chance.random() < 0.7:
            _restate(path_of(task.result), file.read_bytes())
        return
    _rewrite(path_of(task.result), faulty_result, chance)


def corrupt_update(result: bytes, adapter: bytes, chance: random.Random) -> tuple[bytes, bytes]:
    """A training's result and adapter, of which one has faults; mostly, the result states the adapter as it is."""
    if chance.random() < 0.3:
        return faulty_result(result, chance), adapter
    changed = faulty_adapter(adapter, chance)
    return (stating(result, changed) if chance.random() < 0.9 else result), changed


def _rewrite(file: Path, fault: Callable[[bytes, random.Random], bytes], chance: random.Random) -> None:
    if file.exists():
        file.write_bytes(fault(file.read_bytes(), chance))


def _restate(file: Path, adapter: bytes) -> None:
    if file.exists():
        file.write_bytes(stating(file.read_bytes(), adapter))


def stating(result: bytes, adapter: bytes) -> bytes:
    """The result, stating the adapter as it is."""
    artifact = {"name": "adapter.safetensors", "size": len(adapter), "sha256": hashlib.sha256(adapter).hexdigest()}
    return json.dumps(json.loads(result) | {"adapter": artifact}).encode()


# --- faults of results


def _value(data: bytes, chance: random.Random) -> bytes:
    """Another value somewhere."""
    return _with(data, chance, lambda holder, key: holder.__setitem__(key, Marked()))


def _removed(data: bytes, chance: random.Random) -> bytes:
    """A field or an item less."""
    return _with(data, chance, lambda holder, key: holder.__delitem__(key))


def _added(data: bytes, chance: random.Random) -> bytes:
    """A field or an item more, of any name."""

    def add(holder: Any, key: Any) -> None:
        if isinstance(holder, dict):
            holder[chance.choice(("zzz", "\u202e", "x" * 5000, "layer.0.q", "accuracy", "site-b", "\x00"))] = Marked()
        else:
            holder.extend(copy.deepcopy(holder[key]) for _ in range(chance.choice((1, 1000))))

    return _with(data, chance, add)


def _swapped(data: bytes, chance: random.Random) -> bytes:
    """Numbers of another size."""

    def scale(holder: Any, key: Any) -> None:
        if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * chance.choice((-1, 0, 10, 1000, 1e12, 1e200))
        else:
            holder[key] = Marked()

    return _with(data, chance, scale)


def _with(data: bytes, chance: random.Random, change: Callable[[Any, Any], None]) -> bytes:
    """Change a random place of the JSON; bytes that are not JSON any more stay."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_places(value))
    if not places:
        return data
    change(*chance.choice(places))
    marks = "\N{BLACK SQUARE}"
    text = json.dumps(value, default=lambda _: marks)
    return text.replace(f'"{marks}"', chance.choice(NASTY)).replace('"\\u25a0"', chance.choice(NASTY)).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randint(0, max(0, len(data) - 1))]


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if changed:
            changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _padded(data: bytes, chance: random.Random) -> bytes:
    return data + b" " * chance.choice((1, 2**20, 3 * 2**20))


def _other(_data: bytes, chance: random.Random) -> bytes:
    return chance.choice(
        (b"", b"null", b"[]", b"{}", b"\xff\xfe", b"PK\x03\x04", b"[" * 100_000, b'{"kind": "train"}', b'"' + b"a" * 2**20)
    )


_OF_RESULTS = (_value, _value, _swapped, _swapped, _removed, _added, _cut, _flipped, _padded, _other)


# --- faults of adapters


def _header(data: bytes, chance: random.Random) -> bytes:
    """Another header, of the length that it states or not."""
    length = int.from_bytes(data[:8], "little")
    header = faulty_result(data[8 : 8 + length], chance)
    stated = len(header) if chance.random() < 0.7 else chance.choice((0, 2**63, 10**8, length))
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def _numbers(data: bytes, chance: random.Random) -> bytes:
    """NaN, infinite, huge or tiny numbers in the tensors."""
    length = 8 + int.from_bytes(data[:8], "little")
    nasty = chance.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00", b"\xca\xf2\x49\x71"))
    changed = bytearray(data)
    for at in chance.sample(range(length, len(data) - 3, 4), k=chance.choice((1, 5))):
        changed[at : at + 4] = nasty
    return bytes(changed)


_OF_ADAPTERS = (_header, _header, _numbers, _numbers, _cut, _flipped, _padded, _other)

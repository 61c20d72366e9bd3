"""How encoded tensors lie in a safetensors file: `<key>.<codec>.<part>` for each part, and `<key>` in float32 for one as it is."""

from collections.abc import Container, Mapping, Sequence
from typing import Final

from fedpipe_trainer.codecs.codec import Array, Float32, Part, Shape, TensorCodec
from fedpipe_trainer.codecs.numbers import Float16, Int8

AS_IT_IS: Final = "F32"
_VALUES: Final = "values"
WHOLE: Final[tuple[TensorCodec, ...]] = (Int8(), Float16())
"""The codecs for tensors that are no increments: their part `values` has the shape of the tensor, so that a file describes itself."""


def part_key(key: str, codec: str, part: str) -> str:
    """The key of a part of the tensor under `key`."""
    return f"{key}.{codec}.{part}"


def parts_of(key: str, shape: Shape, codec: TensorCodec | None) -> dict[str, Part]:
    """By key of the file: what a tensor is written as. None: as it is."""
    if codec is None:
        return {key: Part(AS_IT_IS, shape)}
    return {part_key(key, codec.name, name): part for name, part in codec.parts(shape).items()}


def nominal(shape: Shape, rungs: Sequence[TensorCodec]) -> TensorCodec | None:
    """What a tensor of this shape is encoded by if nothing is lost beyond the bounds: the first codec that has something for it."""
    return next((codec for codec in rungs if codec.parts(shape)), None)


def codec_in(keys: Container[str], key: str, shape: Shape, rungs: Sequence[TensorCodec]) -> TensorCodec | None:
    """The codec that the tensor under `key` is encoded by in a file with these keys: the first whose parts are all there, or none."""
    return next((codec for codec in rungs if (parts := parts_of(key, shape, codec)) and all(one in keys for one in parts)), None)


def decode_whole(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of a file, of which each is encoded by one of `WHOLE` or by none.

    Raises:
        ValueError: a part of a tensor is missing.
    """
    left = dict(arrays)
    for codec in WHOLE:
        ending = part_key("", codec.name, _VALUES)
        for key in [key for key in left if key.endswith(ending)]:
            tensor, shape = key.removesuffix(ending), left[key].shape
            parts = {part_key(tensor, codec.name, part) for part in codec.parts(shape)}
            if missing := sorted(parts - left.keys()):
                raise ValueError(f"it has no {missing[0]}")
            left[tensor] = decode({part: left.pop(part) for part in parts}, tensor, shape, codec)
    return left


def decode(arrays: Mapping[str, Array], key: str, shape: Shape, codec: TensorCodec) -> Float32:
    """The tensor of this key from the arrays of a file.

    Raises:
        ValueError: no tensor is encoded like that.
    """
    return codec.decode({name: arrays[part_key(key, codec.name, name)] for name in codec.parts(shape)}, shape)

"""Codecs that write each value of a tensor by itself: with fewer bits, or as it is."""

from collections.abc import Mapping
from math import ceil, prod
from typing import Final

import numpy as np

from fedpipe_trainer.codecs.codec import Array, Float32, Part, Shape

GROUP: Final = 128
"""Values, in the order of the tensor, that share a scale: it adds a quarter of a bit to each."""
_INT4_MOST: Final = 7
_INT8_MOST: Final = 127


class Plain:
    """The values as they are. Of an increment this is not the tensor as it is, where the site started from a copy that is less exact."""

    name = "Float32"

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        """The values."""
        return {"values": Part("F32", shape)}

    def encode(self, values: Float32) -> Mapping[str, Array]:
        """The same."""
        return {"values": values}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        """The same."""
        return np.asarray(parts["values"], np.float32).reshape(shape)


class Float16:
    """The values as IEEE 754 half-precision numbers: half of the bytes, an error of 2⁻¹¹ of a value. Above 65,504 there are none."""

    name = "Float16"

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        """The values."""
        return {"values": Part("F16", shape)}

    def encode(self, values: Float32) -> Mapping[str, Array]:
        """Rounded to the nearest."""
        with np.errstate(over="ignore"):  # an infinite value is seen where it is compared
            return {"values": values.astype(np.float16)}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        """The values in float32."""
        return np.asarray(parts["values"], np.float32).reshape(shape)


class Int8:
    """The values as integers from -127 to 127 times a scale for each `GROUP` of them: a quarter of the bytes."""

    name = "Int8"

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        """The integers, and the scales in order of the groups."""
        return {"values": Part("I8", shape), "scales": Part("F32", (_groups(shape),))}

    def encode(self, values: Float32) -> Mapping[str, Array]:
        """Rounded to the nearest; the largest value of a group is exact."""
        integers, scales = _quantise(values, _INT8_MOST)
        return {"values": integers[: values.size].reshape(values.shape), "scales": scales}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        """Integers times scales."""
        return _dequantise(parts["values"].reshape(-1), parts["scales"], shape)


class Int4:
    """The values as integers from -7 to 7 times a scale for each `GROUP`, two in a byte: an eighth of the bytes."""

    name = "Int4"

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        """The pairs of integers, and the scales in order of the groups."""
        return {"pairs": Part("U8", (ceil(prod(shape) / 2),)), "scales": Part("F32", (_groups(shape),))}

    def encode(self, values: Float32) -> Mapping[str, Array]:
        """Of a pair, the first is in the lower four bits. Both have 8 added."""
        integers, scales = _quantise(values, _INT4_MOST)
        shifted = (integers[: 2 * ceil(values.size / 2)] + 8).astype(np.uint8)
        return {"pairs": shifted[0::2] | (shifted[1::2] << 4), "scales": scales}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        """Integers times scales."""
        pairs = parts["pairs"]
        integers = np.empty(2 * len(pairs), np.int8)
        integers[0::2], integers[1::2] = (pairs & 15).astype(np.int8) - 8, (pairs >> 4).astype(np.int8) - 8
        return _dequantise(integers[: prod(shape)], parts["scales"], shape)


def _groups(shape: Shape) -> int:
    return ceil(prod(shape) / GROUP)


def _quantise(values: Float32, most: int) -> tuple[Array, Float32]:
    """Integers from -most to most, padded to whole groups with zeros, and the scale of each group."""
    padded = np.zeros((_groups(values.shape), GROUP), np.float32)
    padded.reshape(-1)[: values.size] = values.reshape(-1)
    scales = np.abs(padded).max(axis=1) / np.float32(most)
    with np.errstate(invalid="ignore"):
        quotients = np.divide(padded, scales[:, None], out=np.zeros_like(padded), where=scales[:, None] > 0)
        return np.clip(np.rint(np.nan_to_num(quotients)), -most, most).astype(np.int8).reshape(-1), scales


def _dequantise(integers: Array, scales: Array, shape: Shape) -> Float32:
    padded = np.zeros((len(scales), GROUP), np.float32)
    padded.reshape(-1)[: integers.size] = integers
    with np.errstate(over="ignore", invalid="ignore"):  # a site wrote the scales
        padded *= np.asarray(scales, np.float32)[:, None]
    return padded.reshape(-1)[: prod(shape)].reshape(shape)

"""What a codec is: a tensor as parts that are tensors of a file, and back."""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Shape = tuple[int, ...]

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
"""By the name that safetensors has for a type."""


class Part(NamedTuple):
    """The type and the shape of a part."""

    dtype: str
    """A key of `DTYPES`."""
    shape: Shape

    @property
    def size(self) -> int:
        """In bytes."""
        return DTYPES[self.dtype].itemsize * math.prod(self.shape)


class TensorCodec(Protocol):
    """Encodes the increment of one tensor at a time. Equal values give equal bytes on every machine."""

    @property
    def name(self) -> str:
        """As the spec names it."""

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        """What a tensor of this shape is encoded as, by name of the part; empty if the codec has nothing for such a shape."""

    def encode(self, values: Float32) -> Mapping[str, Array]:
        """The parts of a tensor that `parts` has something for."""

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        """The tensor of this shape.

        Whatever the values of the parts are, it takes no more memory than a few such tensors; values that are no numbers stay none.

        Args:
            parts: of the types and shapes that `parts` says.
            shape: of the tensor.

        Raises:
            ValueError: no tensor is encoded like that.
        """

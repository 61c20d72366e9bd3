"""Codecs: how the tensors of updates and global adapters travel (`spec.codec`). numpy only: operator and trainer share this package.

What a codec encodes is the increment of a tensor from what its site started from; what is decoded is added to the global adapter. A codec
is added here, with a name, and knows nothing of rounds, sites or files: `encoding` has the ladder and the bounds, `files` the layout.
"""

from collections.abc import Callable
from typing import Final

from fedpipe_trainer.codecs.codec import DTYPES, Array, Float32, Part, Shape, TensorCodec
from fedpipe_trainer.codecs.numbers import Float16, Int4, Int8, Plain
from fedpipe_trainer.codecs.sparse import LowRank, TopK
from fedpipe_trainer.contract import IDENTITY, Codec

CODECS: Final[dict[str, Callable[[Codec], TensorCodec]]] = {
    "TopK": lambda codec: TopK(codec.fraction),
    "LowRank": lambda codec: LowRank(codec.rank),
    "Int4": lambda _: Int4(),
    "Int8": lambda _: Int8(),
    "Float16": lambda _: Float16(),
}
"""By name, in order of the ladder: after each, the better ones that are used in its place where it loses too much."""
_LOSE_A_PART: Final = frozenset({"TopK", "LowRank"})
"""Of the codecs that lose a part of a tensor, none is better than the other."""


def ladder(codec: Codec, name: str) -> tuple[TensorCodec, ...]:
    """The codec of this name, then the better ones, each tried where the one before loses too much. After the last: Identity.

    Raises:
        ValueError: there is none of this name.
    """
    if name == IDENTITY:
        return ()
    if name not in CODECS:
        raise ValueError(f"there is no codec {name}: use {IDENTITY}, {', '.join(CODECS)}")
    names = list(CODECS)
    better = [other for other in names[names.index(name) + 1 :] if other not in _LOSE_A_PART]
    return tuple(CODECS[one](codec) for one in (name, *better))


def update_codecs(codec: Codec | None) -> tuple[TensorCodec, ...]:
    """Those that the tensors of an update may be encoded by, the run's first; empty: they travel as they are.

    Where the sites start from a copy that is less exact, increments travel whatever the type: of a tensor as it is, the copy's error would
    count as if the site had learned it.

    Raises:
        ValueError: there is none of this name.
    """
    if codec is None:
        return ()
    return (*ladder(codec, codec.type), *(() if codec.downlink == IDENTITY else (Plain(),)))


__all__ = [
    "CODECS",
    "DTYPES",
    "Array",
    "Float16",
    "Float32",
    "Int4",
    "Int8",
    "LowRank",
    "Part",
    "Plain",
    "Shape",
    "TensorCodec",
    "TopK",
    "ladder",
    "update_codecs",
]

"""The samples that a model is trained on or evaluated with, as token ids: a few bytes a token, however many there are."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

IGNORED: Final = -100
"""The label of a position that does not count in the loss (the default `ignore_index` of torch's cross entropy)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sample. `labels` is one class index, or one token per input position (CausalLM) or per target position (Seq2SeqLM)."""

    input_ids: list[int]
    labels: list[int]


class Examples(Sequence[Example]):
    """Samples in arrays: int32 token ids, and labels that are either others, or the token ids where a sample's tokens are targets."""

    def __init__(self, ids: NDArray[np.int32], ends: NDArray[np.int64], labels: NDArray[Any], label_ends: NDArray[np.int64]) -> None:
        """Take arrays, which may be mapped from a file.

        Args:
            ids: the tokens of all samples, one after the other.
            ends: where each sample's tokens end.
            labels: int32 labels of all samples; or, of type bool, which of their tokens are targets.
            label_ends: where each sample's labels end.
        """
        self._ids, self._ends, self._labels, self._label_ends = ids, ends, labels, label_ends

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> Example: ...

    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...

    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        """A sample, or a list of some."""
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        ids, labels = _part(self._ids, self._ends, at), _part(self._labels, self._label_ends, at)
        if labels.dtype == bool:
            labels = np.where(labels, ids, IGNORED)
        return Example(ids.tolist(), labels.tolist())

    def __iter__(self) -> Iterator[Example]:
        """The samples in order."""
        return (self[at] for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether the other sequence has equal samples."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it may be large, and is no key

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each sample."""
        found: list[int] = np.diff(self._ends, prepend=0).tolist()
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(one.nbytes for one in (self._ids, self._ends, self._labels, self._label_ends))


def lengths_of(examples: Sequence[Example]) -> list[int]:
    """The number of tokens of each sample."""
    return examples.lengths if isinstance(examples, Examples) else [len(example.input_ids) for example in examples]


def collect(samples: Iterable[Example], *, marks_targets: bool) -> Examples:
    """The samples in arrays, which are filled one sample after the other.

    Args:
        samples: in their order.
        marks_targets: whether each label is the sample's token at its position or `IGNORED`: then a byte is stored of it.
    """
    ids, ends, labels, label_ends = array("i"), array("q"), array("b" if marks_targets else "i"), array("q")
    for sample in samples:
        ids.extend(sample.input_ids)
        ends.append(len(ids))
        labels.extend([label != IGNORED for label in sample.labels] if marks_targets else sample.labels)
        label_ends.append(len(labels))
    of_labels = np.frombuffer(labels, dtype=bool if marks_targets else np.int32)
    return Examples(
        np.frombuffer(ids, dtype=np.int32), np.frombuffer(ends, dtype=np.int64), of_labels, np.frombuffer(label_ends, dtype=np.int64)
    )


def _part(values: NDArray[Any], ends: NDArray[np.int64], at: int) -> NDArray[Any]:
    return values[(ends[at - 1] if at else 0) : ends[at]]

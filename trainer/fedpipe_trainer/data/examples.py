"""The samples that a model is trained on or evaluated with, as token ids: a few bytes a token, however many there are."""

import mmap
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from fedpipe_trainer.data.spill import SpilledBytes

IGNORED: Final = -100
"""The label of a position that does not count in the loss (the default `ignore_index` of torch's cross entropy)."""
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Example:
    """One sample.

    `labels` is one class index, 0 or 1 for each class, or one number (SequenceClassification), or one token per input position (CausalLM,
    Preference, whose pairs are made in `pairs`) or per target position (Seq2SeqLM).
    """

    input_ids: list[int]
    labels: Sequence[float]
    second: int = 0
    """Where the second text of a pair begins, for models that are told which tokens are its; 0: there is none."""


class Labels(Enum):
    """How labels are stored."""

    INTEGERS = "i"
    NUMBERS = "f"
    MARKS = "b"
    """Each label is the sample's token at its position or `IGNORED`: of it, a byte is stored."""


class Examples(Sequence[Example]):
    """Samples in arrays: int32 token ids, and labels that are either others, or the token ids where a sample's tokens are targets."""

    def __init__(
        self,
        ids: NDArray[np.int32],
        ends: NDArray[np.int64],
        labels: NDArray[Any],
        label_ends: NDArray[np.int64],
        *,
        seconds: NDArray[np.int32],
    ) -> None:
        """Take arrays, which may be mapped from a file.

        Args:
            ids: the tokens of all samples, one after the other.
            ends: where each sample's tokens end.
            labels: labels of all samples; or, of type bool, which of their tokens are targets.
            label_ends: where each sample's labels end.
            seconds: where the second text of each sample begins; of no length if no sample has one.
        """
        self._ids, self._ends, self._labels, self._label_ends, self._seconds = ids, ends, labels, label_ends, seconds

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
        return Example(ids.tolist(), labels.tolist(), int(self._seconds[at]) if len(self._seconds) else 0)

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
        return list(_lengths(self._ends))

    @property
    def tokens(self) -> int:
        """Of all samples."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays, in the order in which they are taken."""
        return self._ids, self._ends, self._labels, self._label_ends, self._seconds

    @classmethod
    def of_arrays(cls, arrays: Sequence[NDArray[Any]]) -> "Examples":
        """The samples of arrays as of `arrays`.

        Raises:
            ValueError: there are not five of them.
        """
        ids, ends, labels, label_ends, seconds = arrays
        return cls(ids, ends, labels, label_ends, seconds=seconds)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(one.nbytes for one in self.arrays)


def lengths_of(examples: Sequence[Example]) -> Sequence[int]:
    """The number of tokens of each sample."""
    if not isinstance(examples, Examples):
        return [len(example.input_ids) for example in examples]
    return array("i", _lengths(examples.arrays[1]))


def _lengths(ends: NDArray[np.int64]) -> Iterator[int]:
    last = 0
    for part in blocks_of(ends):
        yield from np.diff(part, prepend=last).tolist()
        last = int(part[-1])


def collect(samples: Iterable[Example], labels_as: Labels, folder: Path | None = None) -> Examples:
    """The samples in arrays, which are filled one sample after the other: many in files on the volume of `folder`, see `SpilledBytes`."""
    ids, ends, labels, label_ends, seconds = (SpilledBytes(folder) for _ in range(5))
    tokens = targets = has_seconds = 0
    for sample in samples:
        of_sample = [label != IGNORED for label in sample.labels] if labels_as is Labels.MARKS else sample.labels
        tokens, targets, has_seconds = tokens + len(sample.input_ids), targets + len(of_sample), has_seconds or sample.second
        for column, typecode, values in (
            (ids, "i", sample.input_ids),
            (ends, "q", (tokens,)),
            (labels, labels_as.value, of_sample),
            (label_ends, "q", (targets,)),
            (seconds, "i", (sample.second,)),
        ):
            column.append(array(typecode, values).tobytes())
    of_labels = labels.as_array("?" if labels_as is Labels.MARKS else labels_as.value)
    of_seconds = seconds.as_array("i")[: None if has_seconds else 0]
    return Examples(ids.as_array("i"), ends.as_array("q"), of_labels, label_ends.as_array("q"), seconds=of_seconds)


def blocks_of(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The array in parts. Of one that is mapped from a file, only the part under way takes memory."""
    step = max(1, _BLOCK_BYTES // values.itemsize)
    for start in range(0, values.size, step):
        yield values[start : start + step]
        if isinstance(values, np.memmap):
            values._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # noqa: SLF001 -- numpy has no other way to it


def _part(values: NDArray[Any], ends: NDArray[np.int64], at: int) -> NDArray[Any]:
    return values[(ends[at - 1] if at else 0) : ends[at]]

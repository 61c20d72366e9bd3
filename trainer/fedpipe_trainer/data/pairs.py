"""A pair of answers as one sample, so that both are in every batch and micro-batch together.

Its token ids are those of the chosen answer with its prompt, then those of the rejected one with the prompt again, both filled up to the
longer of the two: as many tokens as a model computes for the pair, so that lengths, batches and memory are counted as for other samples.
What follows the last target of a half is filling. It is never read.
"""

from collections.abc import Sequence

from fedpipe_trainer.data.examples import IGNORED, Example


def join_answers(chosen: Example, rejected: Example) -> Example:
    """Both answers, each with its prompt before it, as one sample. The last label of each is a target."""
    width = max(len(chosen.input_ids), len(rejected.input_ids))
    ids, labels = [], []
    for one in (chosen, rejected):
        filling = width - len(one.input_ids)
        ids += [*one.input_ids, *[0] * filling]
        labels += [*one.labels, *[IGNORED] * filling]
    return Example(ids, labels)


def split_answers(pairs: Sequence[Example]) -> list[Example]:
    """What `join_answers` joined: the chosen answers of all pairs, then the rejected ones in the same order."""
    halves = [(one, half) for half in (0, 1) for one in pairs]
    return [_half(one, half * (len(one.input_ids) // 2)) for one, half in halves]


def _half(pair: Example, first: int) -> Example:
    end = first + len(pair.input_ids) // 2
    while end > first and pair.labels[end - 1] == IGNORED:
        end -= 1
    return Example(pair.input_ids[first:end], pair.labels[first:end])

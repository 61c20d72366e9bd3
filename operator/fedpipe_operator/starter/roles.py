"""What a column may be in a task: a text, a label, a number, a conversation. Told by its values, and by names that data sets use. Pure."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedpipe_operator.api import Problem
from fedpipe_operator.formatting import excerpt
from fedpipe_trainer.contract.inspection import ColumnFacts, DataFacts

LABEL_NAMES: Final = (
    *("label", "labels", "class", "target", "gold_label", "label_text", "sentiment", "intent", "emotion", "stars", "rating", "score"),
    *("entailment_judgment", "entailment_label", "is_duplicate", "similarity", "similarity_score", "relatedness_score", "y"),
)
"""Names that hardly mean anything else, the most usual first."""
_TEXT_NAMES: Final = (
    "text",
    "sentence",
    "content",
    "document",
    "review",
    "body",
    "comment",
    "message",
    "utterance",
    "tweet",
    "note",
    "abstract",
)
_NO_TEXT: Final = re.compile(
    r"^(|id|idx|index|guid|uuid|key|url|uri|date|time|timestamp|file|filename|path|split|source|.*[_ .-]id|id[_ .-].*)$"
)
"""Names of columns whose texts nobody trains on, and which are labels only where nothing else is."""
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_MOST_LABELS: Final = 100
"""As `policy.maxLabels`, by default."""
_MOST_NUMBERS: Final = 20
"""Different whole numbers up to which they are taken for labels."""
_LONGEST_LABEL: Final = 60
"""Mean characters of a label."""
SENTENCES: Final = 0.5
"""Share of a column's texts that are sentences, from which on it is one to read, rather than one of names or codes."""
_LONGEST_NAME: Final = 60
_SHOWN: Final = 30


@dataclass(frozen=True)
class Wanted:
    """Columns that the user named; empty: they are to be found."""

    text: str = ""
    label: str = ""


def common_columns(data: Sequence[DataFacts]) -> dict[str, ColumnFacts]:
    """The columns that all of these files have, each with what is known of it from all of them."""
    files = [columns for one in data for columns in (one.columns, one.validation_columns) if columns]
    by_name = [{column.name: column for column in columns} for columns in files]
    names = [column.name for column in files[0] if all(column.name in columns for columns in by_name)] if files else []
    return {name: _merged([columns[name] for columns in by_name]) for name in names}


def _merged(found: Sequence[ColumnFacts]) -> ColumnFacts:
    rows = sum(one.rows for one in found)
    labels: Counter[str] = Counter()
    for one in found:
        labels.update(one.labels)
    shapes = {one.shape for one in found}
    return found[0].model_copy(
        update={
            "rows": rows,
            "kinds": tuple(dict.fromkeys(kind for one in found for kind in one.kinds)),
            "shape": shapes.pop() if len(shapes) == 1 else None,
            "is_numeric": all(one.is_numeric for one in found),
            "is_whole": all(one.is_whole for one in found),
            "largest_number": max(one.largest_number for one in found),
            "mean_characters": sum(one.mean_characters * one.rows for one in found) / max(1, rows),
            "longest_characters": max(one.longest_characters for one in found),
            "share_of_sentences": min(one.share_of_sentences for one in found),
            "distinct": max(len(labels), *(one.distinct for one in found)),
            "labels": dict(labels),
        }
    )


def has_every_label(column: ColumnFacts, data: Sequence[DataFacts]) -> bool:
    """Whether `labels` of the merged column are all values that the files have: all rows were read, and no value is in one row alone."""
    files = [columns for one in data for columns in (one.columns, one.validation_columns)]
    facts = [one for columns in files for one in columns if one.name == column.name]
    return all(one.is_whole for one in data) and all(one.distinct == len(one.labels) for one in facts)


def is_text(column: ColumnFacts) -> bool:
    """Whether its values are texts, but for a few."""
    return column.kinds[:1] == ("text",) and column.shape is None


def problem_of(column: ColumnFacts) -> Problem | None:
    """What predicting this column would be; None if it is nothing that a head predicts."""
    if column.shape == "labels":
        return Problem.MULTI_LABEL if len(column.labels) > 1 and column.distinct <= _MOST_LABELS else None
    if column.is_numeric and column.kinds[:1] != ("boolean",):
        if not column.is_whole:
            return Problem.REGRESSION
        if _are_labels(column) and column.distinct <= _MOST_NUMBERS:
            return Problem.SINGLE_LABEL
        return Problem.REGRESSION if column.name.lower() in LABEL_NAMES else None
    return Problem.SINGLE_LABEL if _are_labels(column) and column.mean_characters <= _LONGEST_LABEL else None


def _are_labels(column: ColumnFacts) -> bool:
    """Whether few values are there often."""
    return 1 < column.distinct <= _MOST_LABELS and 2 * sum(column.labels.values()) >= column.rows


def texts_of(columns: Iterable[ColumnFacts]) -> list[ColumnFacts]:
    """The columns that a model may read, best first: by usual names, then the longest texts."""
    texts = [column for column in columns if is_text(column)]
    named = [column for column in texts if not _NO_TEXT.match(column.name.lower())]
    sentences = [column for column in named if column.share_of_sentences >= SENTENCES]
    return sorted(sentences or named, key=_text_rank)


def _text_rank(column: ColumnFacts) -> tuple[int, float]:
    name = column.name.lower().rpartition(".")[2]
    return (_TEXT_NAMES.index(name) if name in _TEXT_NAMES else len(_TEXT_NAMES), -column.mean_characters)


def label_rank(column: ColumnFacts) -> int:
    """How usual the name is for a label: 0 is the most usual; `len(LABEL_NAMES)`: it is not; one more: it is that of an id or the like."""
    name = column.name.lower().rpartition(".")[2]
    return LABEL_NAMES.index(name) if name in LABEL_NAMES else len(LABEL_NAMES) + bool(_NO_TEXT.match(name))


def words_of(name: str) -> set[str]:
    """The words in a column's name, in lower case: of `agentReply` agent and reply."""
    return {word.lower() for word in _WORD.findall(name)}


def shown(name: str) -> str:
    """A column's name in a sentence, on one line."""
    return repr(excerpt(name, _LONGEST_NAME))


def described(columns: Mapping[str, ColumnFacts]) -> str:
    """The columns with their types, and nothing of their cells."""
    parts = [f"{shown(name)} ({_described(column)})" for name, column in list(columns.items())[:_SHOWN]]
    more = f" and {len(columns) - _SHOWN} others" if len(columns) > _SHOWN else ""
    return f"{', '.join(parts)}{more}"


def _described(column: ColumnFacts) -> str:
    what = f"list of {column.shape}" if column.shape else "number" if column.is_numeric else column.kinds[0] if column.kinds else "empty"
    return f"{what}, {column.distinct} different" if column.labels else what

"""Guesses what a head may predict: a label, several, or a number, for a text or a pair of texts. Pure."""

from collections.abc import Sequence
from typing import Final

from fedpipe_operator.api import Problem
from fedpipe_operator.starter.context import CannotTellError, Context, Guess, text_names
from fedpipe_operator.starter.roles import LABEL_NAMES, has_every_label, is_text, label_rank, problem_of, shown, texts_of
from fedpipe_trainer.contract.inspection import ColumnFacts
from fedpipe_trainer.contract.result import MAX_TARGET

_TEXT_PAIRS: Final = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("text1", "text2"), ("question1", "question2")),
    *(("question", "sentence"), ("query", "passage"), ("query", "document"), ("text", "text_pair"), ("claim", "evidence")),
)
"""Columns of pairs of texts, as data sets name them."""
_PAIR: Final = 2
_UNNAMED: Final = len(LABEL_NAMES)


def flags_of(context: Context) -> list[str]:
    """The columns that are 0 or 1, or false or true, in each row: several of them are several labels of a text."""
    return [
        name
        for name, column in context.columns.items()
        if column.labels and column.distinct == len(column.labels) and set(column.labels) in ({"0", "1"}, {"false", "true"})
    ]


def has_named_label(context: Context) -> bool:
    """Whether a column that a head may predict has the name of a label."""
    return any(problem_of(column) and label_rank(column) < _UNNAMED for column in context.columns.values())


def named_head(context: Context) -> Guess | None:
    """As `head`, where a column has the name of a label."""
    return head(context) if has_named_label(context) else None


def head(context: Context) -> Guess | None:
    """A label, several labels, or a number, for a text or a pair of texts."""
    targets = _targets(context)
    texts = _texts_beside(context, targets[0]) if targets else []
    if not texts:
        return None
    target, problem = targets[0], problem_to_predict(targets[0])
    fields: dict[str, object] = {"type": "SequenceClassification", "text": texts[0]}
    fields |= {"textPair": texts[1]} if len(texts) == _PAIR else {}
    fields |= {"label": target.name} | ({"problem": problem.value} if problem is not Problem.SINGLE_LABEL else {})
    labels, note = _labels(context, target, problem)
    fields |= {"labels": labels} if labels else {}
    columns = (*texts, target.name)
    characters = sum(context.columns[name].longest_characters for name in texts)
    why = f"{' and '.join(map(shown, texts))} {_told(target, problem)}"
    return Guess(fields, columns, why, _other_readings(context, targets, texts, problem), note, characters)


def _targets(context: Context) -> list[ColumnFacts]:
    """The columns that a head may predict, best first."""
    if context.wanted.label:
        return [context.columns[context.wanted.label]]
    found = [column for column in context.columns.values() if problem_of(column) and column.name != context.wanted.text]
    return sorted(found, key=label_rank)


def problem_to_predict(target: ColumnFacts) -> Problem:
    """What predicting this column is.

    Raises:
        CannotTellError: it has no labels, or numbers that are too large.
    """
    found = problem_of(target)
    if found is Problem.REGRESSION and target.largest_number > MAX_TARGET:
        seen = f"{shown(target.name)} has numbers up to {target.largest_number:g} in size"
        advice = "scale the column, at every site by the same factor, or name another by --label"
        raise CannotTellError(f"{seen}, and those of a regression are at most {MAX_TARGET:g}: {advice}")
    if found is None:
        seen = f"{shown(target.name)} has {target.distinct} different values in {target.rows} rows"
        rule = "labels are at most 100 values that two rows or more have, at least two of them; or numbers"
        raise CannotTellError(f"{seen}, which are no labels ({rule}): name another column by --label")
    return found


def _texts_beside(context: Context, target: ColumnFacts) -> list[str]:
    """The text or the two texts that the label is of."""
    others = {name: column for name, column in context.columns.items() if name != target.name}
    if context.wanted.text:
        return [context.wanted.text]
    pair = next((pair for pair in _TEXT_PAIRS if all(name in others and is_text(others[name]) for name in pair)), None)
    if pair is not None:
        return list(pair)
    texts = [column.name for column in texts_of(others.values())]
    return texts if len(texts) == _PAIR and texts[0] != "text" else texts[:1]


def _labels(context: Context, target: ColumnFacts, problem: Problem) -> tuple[list[str], str]:
    """The labels to declare, and if there are none, why."""
    if problem is Problem.REGRESSION:
        return [], ""
    labels = sorted(target.labels, key=_label_order)
    if problem is Problem.MULTI_LABEL or has_every_label(target, context.data):
        return labels, ""
    seen = (
        f"{len(labels)} labels were seen in the first rows"
        if not all(one.is_whole for one in context.data)
        else "some values are in one row only"
    )
    return [], f"labels is left out, since {seen}: those count that two sites have (of one site, its own). Declare all for a real run"


def _label_order(label: str) -> tuple[int, int, str]:
    is_number = label.removeprefix("-").isdecimal() and len(label) < 10  # noqa: PLR2004 - no label has more digits
    return (0, int(label), label) if is_number else (1, 0, label)


def _told(target: ColumnFacts, problem: Problem) -> str:
    what = {
        Problem.SINGLE_LABEL: f"one of {target.distinct} values: a label",
        Problem.MULTI_LABEL: "lists: any number of labels for each text",
        Problem.REGRESSION: "numbers: a regression, whose head has one output",
    }[problem]
    return f"with {shown(target.name)}, which has {what}"


def _other_readings(context: Context, targets: Sequence[ColumnFacts], texts: Sequence[str], problem: Problem) -> tuple[str, ...]:
    found = []
    if targets[0].is_numeric and problem is Problem.SINGLE_LABEL and targets[0].distinct > _PAIR:
        found.append("if the numbers are amounts (stars, degrees), predict them: problem: Regression, without labels")
    if len(texts) == _PAIR and tuple(texts) not in _TEXT_PAIRS:
        found.append(f"if the two texts do not belong together, remove textPair, and {shown(texts[0])} alone is read")
    flags = flags_of(context)
    if targets[0].name in flags and len(flags) > 1:
        others = ", ".join(shown(name) for name in flags if name != targets[0].name)
        found.append(
            f"{shown(targets[0].name)} alone is predicted. If it and {others} are labels of one text, write one column with the list of "
            "those that are 1, and predict that: problem: MultiLabel"
        )
    rest = [other for other in targets[1:] if other.name not in flags or len(flags) == 1]
    found += [f"to predict {shown(other.name)} instead: fedpipe init --label {shown(other.name)}" for other in rest]
    unread = [name for name in text_names(context) if name not in texts and name not in {one.name for one in targets}]
    if unread:
        found.append(f"not read: {', '.join(map(shown, unread))}. To read one instead: fedpipe init --text COLUMN")
    folded = {label.casefold() for label in targets[0].labels}
    if problem is not Problem.REGRESSION and len(folded) < len(targets[0].labels):
        found.append("some labels differ by upper and lower case only: if they are the same, correct the data")
    return tuple(found)

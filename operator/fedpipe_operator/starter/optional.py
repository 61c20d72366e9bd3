"""The columns that a task also reads where a file has them and the policy allows them: LLaMA-Factory's `system` and `history`. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pydantic import TypeAdapter, ValidationError

from fedpipe_operator.api import TaskSpec
from fedpipe_operator.conversion import objective
from fedpipe_operator.starter.context import Guess
from fedpipe_operator.starter.roles import shown
from fedpipe_trainer.contract import optional_columns
from fedpipe_trainer.contract.inspection import ColumnFacts, DataFacts

_TASK: Final[TypeAdapter[TaskSpec]] = TypeAdapter(TaskSpec)
_HISTORY: Final = "history"
_EMPTY_LIST: Final = "[]"


def with_optional(guess: Guess, data: Sequence[DataFacts]) -> Guess:
    """The guess with the columns that its task also reads of these sites' data, and a note of those that it cannot read."""
    names = _optional_of_task(guess.fields)
    found = [(name, [column for one in data for column in _columns(one) if column.name == name]) for name in names]
    read = {name: columns for name, columns in found if columns and all(map(_is_readable, columns))}
    notes = [_unreadable(name) for name, columns in found if columns and name not in read]
    return replace(
        guess,
        optional=tuple(read),
        why=f"{guess.why}. Read, too, where a row has it: {', '.join(map(shown, read))}" if read else guess.why,
        instead=(*guess.instead, *notes),
        characters=guess.characters + sum(max(column.longest_characters for column in columns) for columns in read.values()),
    )


def columns_of_site(guess: Guess, facts: DataFacts) -> tuple[str, ...]:
    """The columns that the task reads of this site's data."""
    there = {column.name for column in _columns(facts)}
    return (*guess.columns, *(name for name in guess.optional if name in there))


def _optional_of_task(fields: Mapping[str, object]) -> tuple[str, ...]:
    try:
        return optional_columns(objective(_TASK.validate_python(fields)))
    except ValidationError:  # a column's name that the API refuses, which is told when the YAML is checked
        return ()


def _columns(facts: DataFacts) -> Iterator[ColumnFacts]:
    yield from facts.columns
    yield from facts.validation_columns


def _is_readable(column: ColumnFacts) -> bool:
    """Whether the trainer's reader takes its values, as far as they were seen."""
    if column.name != _HISTORY:
        return column.kinds[:1] in {(), ("text",)}
    return column.shape == "pairs" or column.longest_characters <= len(_EMPTY_LIST)


def _unreadable(name: str) -> str:
    expected = "pairs of texts, each a prompt and its response" if name == _HISTORY else "texts"
    return f"not read: {shown(name)}, which has no {expected}. Make such of it, and add it to policy.columns of each site that has it"

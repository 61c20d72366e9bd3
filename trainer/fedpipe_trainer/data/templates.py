"""Templates over columns: `{column}` stands for a row's text, `{{` and `}}` for the braces themselves.

Plain column names only. Python's own `str.format` would also follow attributes and indices, which a document that
a user applies has no business with.
"""

from collections.abc import Mapping
from string import Formatter

from fedpipe_trainer.contract import CausalLM, FailureReason, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.errors import TaskFailed


def columns_of(objective: SequenceClassification | CausalLM | Seq2SeqLM) -> tuple[str, ...]:
    """The columns that the objective reads, each once, in the order of their first use.

    Raises:
        TaskFailed: BadTask, a template names no column or not a plain one.
    """
    if isinstance(objective, SequenceClassification):
        return tuple(dict.fromkeys((objective.text, objective.label)))
    named = [*_columns("prompt", objective.prompt), *_columns("response", objective.response)]
    return tuple(dict.fromkeys(named))


def fill(template: str, row: Mapping[str, str]) -> str:
    """The template with the row's texts in the place of its columns.

    Raises:
        TaskFailed: BadTask, the row has no such column.
    """
    filled = []
    for literal, column, _, _ in Formatter().parse(template):
        filled.append(literal)
        if column is not None:
            if column not in row:
                raise _bad(f"the template {template!r} names the column {column!r}, the data has: {', '.join(sorted(row))}")
            filled.append(row[column])
    return "".join(filled)


def _columns(which: str, template: str) -> list[str]:
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise _bad(f"the {which} template {template!r} cannot be read: {error}; write a brace that is meant as such twice") from error
    for name, spec, conversion in fields:
        if not name or spec or conversion or set(name) & set(".[]"):
            raise _bad(f"the {which} template {template!r} may hold plain column names only, like {{text}}; this is none: {{{name}}}")
    if not fields:
        raise _bad(f"the {which} template {template!r} names no column: every row would give the same text")
    return [name for name, _, _ in fields]


def _bad(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.BAD_TASK, message)

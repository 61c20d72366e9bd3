"""Templates over columns: `{column}` is replaced by a row's text, `{{` and `}}` by braces.

Only plain column names are allowed, and paths such as `review.body` into nested rows. Python's `str.format` would also evaluate
attributes and indices, which a document
from a user must not do.
"""

from collections.abc import Mapping
from string import Formatter

from fedpipe_trainer.contract import (
    CHAT_FORMATS,
    FORMAT_COLUMNS,
    CausalLM,
    FailureReason,
    Objective,
    Preference,
    Seq2SeqLM,
    SequenceClassification,
)
from fedpipe_trainer.errors import TaskFailed


def columns_of(objective: Objective) -> tuple[str, ...]:
    """The columns that the objective reads, without duplicates, in the order of their first use.

    Raises:
        TaskFailed: BadTask, a template names no column, or something that is not a plain column name.
    """
    if isinstance(objective, SequenceClassification):
        return tuple(dict.fromkeys(column for column in (objective.text, objective.text_pair, objective.label) if column))
    if isinstance(objective, Preference):
        return objective.columns
    if objective.format != "Template":
        return _columns_of_format(objective)
    named = [*_columns("prompt", objective.prompt or ""), *_columns("response", objective.response or "")]
    return tuple(dict.fromkeys(named))


def _columns_of_format(objective: CausalLM | Seq2SeqLM) -> tuple[str, ...]:
    if isinstance(objective, Seq2SeqLM) or objective.format in FORMAT_COLUMNS:
        return FORMAT_COLUMNS[objective.format]
    if objective.format in CHAT_FORMATS:
        return tuple(column for column in (objective.conversation_column, objective.tools) if column)
    return (objective.text,)


def fill(template: str, row: Mapping[str, str]) -> str:
    """The template with its columns replaced by the row's texts.

    Raises:
        TaskFailed: BadTask, the template names a column that the row does not have.
    """
    filled = []
    for literal, column, _, _ in Formatter().parse(template):
        filled.append(literal)
        if column is not None:
            if column not in row:
                raise _bad_template(f"the template {template!r} names the column {column!r}, which is not in the data")
            filled.append(row[column])
    return "".join(filled)


def _columns(which: str, template: str) -> list[str]:
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise _bad_template(f"the {which} template {template!r} cannot be parsed: {error}; write a literal brace twice") from error
    for name, spec, conversion in fields:
        if not all(name.split(".")) or spec or conversion or set(name) & set("[]"):
            raise _bad_template(
                f"the {which} template {template!r} may contain only plain column names, such as {{text}}; this is not one: {{{name}}}"
            )
    if not fields:
        raise _bad_template(f"the {which} template {template!r} names no column, so every row would give the same text: add a {{column}}")
    return [name for name, _, _ in fields]


def _bad_template(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.BAD_TASK, message)

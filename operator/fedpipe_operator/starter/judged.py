"""Recognises answers that were judged: graded one by one (KTO), or two beside each other with a verdict (arenas).

No task learns from either as it is. Trained as answers, the bad ones would be learnt, too.
"""

import re
from typing import Final

from fedpipe_operator.starter.context import CannotTellError, Context, Guess
from fedpipe_operator.starter.roles import is_text, shown, words_of
from fedpipe_trainer.contract.inspection import ColumnFacts

_PROMPTS_AND_ANSWERS: Final = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"))
_GRADES: Final = frozenset(
    {"label", "labels", "desirable", "preferred", "accepted", "approved", "chosen", "good", "helpful", "correct", "feedback", "liked"}
)
"""Words in the names of columns that say whether an answer is a good one."""
_YES_OR_NO: Final = ({"0", "1"}, {"true", "false"}, {"yes", "no"}, {"good", "bad"}, {"desirable", "undesirable"})
_VERDICTS: Final = frozenset({"winner", "preferred", "preference", "better", "choice", "chosen", "best", "verdict", "label"})
_ANSWERS: Final = frozenset({"response", "answer", "output", "completion", "reply", "conversation", "generation", "model", "assistant"})
_SIDE: Final = re.compile(r"(?P<stem>.*?)[_ -]?(?P<side>[abAB]|[012])")
_MOST_VERDICTS: Final = 6


def refuse_graded(context: Context) -> Guess | None:
    """Refuse prompts and answers of which a column says whether each is good.

    Raises:
        CannotTellError: there is such a column.
    """
    grade = next((column for column in context.columns.values() if _is_grade(column)), None)
    answer = next((answer for prompt, answer in _PROMPTS_AND_ANSWERS if prompt in context.columns and answer in context.columns), None)
    if grade is None or answer is None:
        return None
    found = f"{shown(grade.name)} says of each {shown(answer)} whether it is a good one (as for KTO), and no task learns from that"
    advice = (
        f"to train the good ones, keep their rows alone and leave {shown(grade.name)} out; of a good and a bad one of a prompt, make a row"
    )
    raise CannotTellError(f"{found}: {advice} with prompt, chosen and rejected; to predict it, give --label {shown(grade.name)}")


def refuse_compared(context: Context) -> Guess | None:
    """Refuse two answers beside each other, and a column that says which is better.

    Raises:
        CannotTellError: there are such columns.
    """
    sides: dict[str, list[str]] = {}
    for name, column in context.columns.items():
        match = _SIDE.fullmatch(name)
        if match and words_of(match["stem"]) & _ANSWERS and (is_text(column) or column.shape in {"messages", "turns"}):
            sides.setdefault(match["stem"], []).append(name)
    verdict = next((column.name for column in context.columns.values() if _is_verdict(column)), None)
    two = next((names for names in sides.values() if len(names) == 2), None)  # noqa: PLR2004 - two answers
    if verdict is None or two is None:
        return None
    found = (
        f"{shown(verdict)} says which of {' and '.join(map(shown, two))} is better, and a task reads such pairs from columns of their own"
    )
    advice = "write each row with prompt, chosen and rejected (docs/task-formats.md), and leave ties out"
    raise CannotTellError(f"{found}: {advice}; to predict it from a text, give --label {shown(verdict)} and --text")


def _is_grade(column: ColumnFacts) -> bool:
    values = {label.casefold() for label in column.labels}
    return bool(words_of(column.name) & _GRADES) and any(values and values <= one for one in _YES_OR_NO)


def _is_verdict(column: ColumnFacts) -> bool:
    return bool(words_of(column.name) & _VERDICTS) and 0 < column.distinct <= _MOST_VERDICTS and bool(column.labels)

"""What a model's chat template does with conversations that it does not render as they are.

Those that it refuses are left out and counted. What it leaves out of the others without a word is told once: the model learns nothing
of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.data.chat_template import RefusedConversationError, UnsaidCallsError, UntoldAnswerError, is_rendered, without_calls
from fedpipe_trainer.data.conversations import Conversation
from fedpipe_trainer.data.spill import Integers
from fedpipe_trainer.data.tokenizer import Tokenizer
from fedpipe_trainer.errors import TaskFailed

_LOOKED_AT: Final = 8
"""Conversations with functions, or calls, that are rendered without them: a template renders them always or never."""
_ADVICE: Final = "use a model whose template renders tool calls, or write each call as the turn's content"


class Refused:
    """The rows that the chat template refuses."""

    def __init__(self) -> None:
        self.rows = Integers()
        self._untold = 0
        self._unsaid = 0
        self._first_untold = ""

    @property
    def what(self) -> str:
        """What the template does to them."""
        if self._are_unsaid:
            return "renders no tool calls, and so nothing of turns that say nothing else, in"
        return "cannot render, or does not tell the answers of," if self._untold or self._unsaid else "cannot render"

    def advice(self, otherwise: str) -> str:
        """What to do about them: what is said otherwise, unless they are calls that are not rendered."""
        return _ADVICE if self._are_unsaid else f"{otherwise}; {_ADVICE}" if self._unsaid else otherwise

    def add(self, row: int, error: RefusedConversationError) -> None:
        """Count this row."""
        self.rows.append(row)
        self._unsaid += isinstance(error, UnsaidCallsError)
        if isinstance(error, UntoldAnswerError):
            self._first_untold = self._first_untold or str(error)
            self._untold += 1

    def check_template(self, rows: int) -> None:
        """Check that it tells the answers of at least half of the rows: of a few it may be their own fault that it does not.

        Raises:
            TaskFailed: BadModel.
        """
        if self._untold > rows / 2:
            raise TaskFailed(FailureReason.BAD_MODEL, f"{self._first_untold}. So it is with {self._untold} of {rows} rows")

    @property
    def _are_unsaid(self) -> bool:
        return 0 < self._unsaid == len(self.rows)


@dataclass(frozen=True)
class _Part:
    """A part of conversations that a template may leave out."""

    without: Callable[[Conversation], Conversation]
    note: str


_PARTS: Final = (
    _Part(
        lambda whole: replace(whole, tools=()),
        "the model's chat template renders no functions, so the model does not learn which it may call: "
        "use a model whose template renders them, or write them into the system's turn",
    ),
    _Part(
        lambda whole: replace(whole, messages=tuple(without_calls(one) if one["content"].strip() else one for one in whole.messages)),
        f"the model's chat template renders no tool calls of turns that have text, too, so the model learns the text alone: {_ADVICE}",
    ),
)


class Unsaid:
    """What the chat template renders in none of the first conversations that have it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rendered: dict[_Part, list[bool]] = {part: [] for part in _PARTS}

    def look_at(self, conversation: Conversation) -> None:
        """Render this conversation with and without what it has, unless enough is known."""
        for part, rendered in self._rendered.items():
            if len(rendered) < _LOOKED_AT and not any(rendered) and (without := part.without(conversation)) != conversation:
                rendered.append(is_rendered(self._tokenizer, conversation, without))

    @property
    def notes(self) -> list[str]:
        """A sentence for each part that is left out."""
        return [part.note for part, rendered in self._rendered.items() if rendered and not any(rendered)]

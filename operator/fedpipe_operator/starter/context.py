"""What the rules of a guess know, and what they make of it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedpipe_operator.starter.roles import Wanted, is_text, texts_of
from fedpipe_trainer.contract.inspection import ColumnFacts, DataFacts, ModelFacts

Columns = Mapping[str, ColumnFacts]


class CannotTellError(Exception):
    """No task can be guessed; the message says what was seen and what to do."""


@dataclass(frozen=True)
class Guess:
    """A task, and the reasons for a reader of the YAML."""

    fields: Mapping[str, object]
    """Of `spec.task`, in order, without `maxLength`."""
    columns: tuple[str, ...]
    """Those that the task reads."""
    why: str
    instead: tuple[str, ...] = ()
    """Other readings of the same data, and what to write for them."""
    labels_note: str = ""
    """Where labels are left out: why, and what to do."""
    characters: int = 0
    """Of the longest row that was seen, in the columns that are read."""
    optional: tuple[str, ...] = ()
    """Columns of some site's data that the task also reads, where the site's policy allows them."""


@dataclass(frozen=True)
class Context:
    """What a rule knows."""

    columns: Columns
    data: Sequence[DataFacts]
    model: ModelFacts
    wanted: Wanted

    def is_there(self, *names: str) -> bool:
        """Whether all of these columns hold texts."""
        return all(name in self.columns and is_text(self.columns[name]) for name in names)

    @property
    def writes_text(self) -> bool:
        """Whether the model can; of an unknown one that is assumed."""
        return self.model.kind != "encoder"


def text_names(context: Context) -> list[str]:
    """The names of the columns with texts, best first."""
    return [column.name for column in texts_of(context.columns.values())]

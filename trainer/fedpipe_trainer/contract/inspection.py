"""Questions about files of this machine that `fedpipe init` and `fedpipe validate --data` ask a trainer's process, and its answers.

They are for who sits at the machine and stay on it: no task, and nothing that a site sends. Each question is a line of JSON on the standard
input of `python -m fedpipe_trainer --inspect`, and its answer a line of its standard output.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from fedpipe_trainer.contract.base import Wire
from fedpipe_trainer.contract.objective import Objective
from fedpipe_trainer.contract.policy import MAX_POLICY_LABELS
from fedpipe_trainer.contract.result import Failure
from fedpipe_trainer.contract.task import ProfileTask

ValueKind = Literal["text", "text in no UTF-8", "integer", "number", "boolean", "list", "object", "other"]
ListShape = Literal["messages", "turns", "labels", "objects", "pairs"]
"""What the lists of a column hold: objects with role and content, objects with from and value, labels, other objects (or the JSON of
objects), or pairs of texts."""
ModelKind = Literal["decoder", "encoder", "encoder-decoder", "unknown"]


def one_line(text: str) -> str:
    """A JSON text as a line: its line ends are between values, for those in a text are escaped."""
    return text.replace("\n", "")


class InspectQuestion(Wire):
    """What is in these data, and what model is this? Of each file the first rows are read, of a model no weights."""

    kind: Literal["inspect"] = "inspect"
    data: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)]
    """Paths of files or folders, one for each site."""
    validation: tuple[str, ...] = ()
    """Paths of the validation data, as many as `data`; empty: they are looked for beside or in `data`."""
    model: str = ""
    """A folder, or `hf://organisation/name@revision`; empty: none is looked at."""


class ColumnFacts(Wire):
    """A column of the rows that were looked at, by its name or by its path into nested objects."""

    name: str
    rows: int
    """Those that have a value."""
    kinds: tuple[ValueKind, ...] = ()
    """Of its values, the most frequent first."""
    shape: ListShape | None = None
    """Of its lists, or of the JSON of lists in its texts."""
    is_numeric: bool = False
    """Whether each value is a number, or the text of one."""
    is_whole: bool = False
    """Whether all of these are whole numbers."""
    largest_number: float = 0.0
    """Size of the largest of these, without its sign."""
    mean_characters: float = 0.0
    """Of its texts, and of the JSON of its lists."""
    longest_characters: int = 0
    share_of_sentences: float = 0.0
    """Share of its texts that have several words."""
    distinct: int = 0
    """Different values, as labels."""
    labels: dict[str, int] = {}
    """The values that two rows or more have, as labels, and how many; empty if there are too many, or they are too long, to be labels."""


class DataFacts(Wire):
    """What was found for one site."""

    train: str
    """The path of the training data."""
    validation: str | None = None
    """That of the validation data; None: there are none beside it."""
    rows: int = 0
    """Those that were looked at and can be read."""
    bad_rows: int = 0
    is_whole: bool = True
    """Whether these, and those of the validation data, are all rows."""
    columns: tuple[ColumnFacts, ...] = ()
    """Of the training data."""
    validation_columns: tuple[ColumnFacts, ...] = ()
    failure: Failure | None = None
    """Why the data cannot be used."""


class ModelFacts(Wire):
    """What is known of a base model without its weights."""

    architecture: str = ""
    """transformers' name of the model type."""
    kind: ModelKind = "unknown"
    has_chat_template: bool = False
    positions: int | None = None
    """Tokens of the longest text that it has positions for; None: no table limits it."""
    has_default_targets: bool = True
    """Whether it is known which of its weights get adapters."""
    labels: tuple[str, ...] = ()
    """Those of a checkpoint that is a classifier already."""
    commit: str = ""
    """The commit that a hub's branch names now."""
    failure: Failure | None = None
    """Why it cannot be used; TransferFailed: the hub was not reached, and nothing is known of it."""


class Inspection(Wire):
    """The answer to `InspectQuestion`."""

    data: tuple[DataFacts, ...] = ()
    model: ModelFacts | None = None


class HoldOutQuestion(Wire):
    """Write a training and a validation file, as JSON lines, from data that have no validation part of their own."""

    kind: Literal["hold-out"] = "hold-out"
    data: str
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    """Those that are written."""
    train: str
    """The path of the file that is written."""
    validation: str
    objective: Objective | None = None
    """Of the task: rows that it cannot use are no part of the validation file. None: any row may be."""


class HeldOut(Wire):
    """The answer to `HoldOutQuestion`."""

    train_rows: int = 0
    validation_rows: int = 0
    skipped_rows: int = 0
    """Those that cannot be read."""
    failure: Failure | None = None


class CheckQuestion(Wire):
    """Could these tasks begin? What a profile checks before it loads a model and measures."""

    kind: Literal["check"] = "check"
    tasks: Annotated[tuple[ProfileTask, ...], Field(min_length=1, max_length=1000)]
    models_in_claims: tuple[str, ...] = ()
    """Sources of the tasks' models that are folders of claims: where they are not on this machine, they may be on a cluster."""
    first_rows: bool = False
    """Whether the first rows of each file are enough, which takes seconds however large it is."""


class FileCheck(Wire):
    """The rows of one file of data."""

    rows: int
    """Those that are used."""
    skipped: int = 0
    """Rows that cannot be used, or that policy.labels leaves out."""
    dropped: int = 0
    """Rows of a label that the run does not have."""
    is_whole: bool = True
    """Whether these are all rows of the file."""
    notes: tuple[str, ...] = ()
    """Why rows are skipped or dropped, each naming the first, and what the model's chat template does not render of the others."""
    labels: Annotated[dict[str, int], Field(max_length=MAX_POLICY_LABELS)] = {}
    """Rows by label: of those that the task declares, or that a profile would name."""
    other_labels: int = 0
    """Different labels that are not named."""


class TokenCheck(Wire):
    """The samples that the run's tokenizer makes of the training rows."""

    samples: int
    mean: float
    longest: int
    """Before a sample is cut."""
    max_length: int
    cut: int = 0
    """Samples that are longer than maxLength, and lose their rest."""
    target_share: float = 1.0
    """Share of the tokens that count in the loss."""


class SiteCheck(Wire):
    """What was found of one site."""

    site: str
    failures: tuple[Failure, ...] = ()
    """Why a profile would fail."""
    warnings: tuple[str, ...] = ()
    """What was not checked, and why."""
    train: FileCheck | None = None
    validation: FileCheck | None = None
    tokens: TokenCheck | None = None


class Checks(Wire):
    """The answer to `CheckQuestion`."""

    sites: tuple[SiteCheck, ...] = ()


Question = Annotated[InspectQuestion | HoldOutQuestion | CheckQuestion, Field(discriminator="kind")]
QUESTION: TypeAdapter[InspectQuestion | HoldOutQuestion | CheckQuestion] = TypeAdapter(Question)

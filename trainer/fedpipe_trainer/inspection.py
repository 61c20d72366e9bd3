"""Answers questions about files of this machine (`contract.inspection`): for `fedpipe init` and `fedpipe validate --data`.

Whatever fails is a failure in the answer, as in a task's result. No weight of a model is read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from fedpipe_trainer.contract import Failure, FailureReason, Model, ProfileTask
from fedpipe_trainer.contract.inspection import (
    QUESTION,
    CheckQuestion,
    Checks,
    DataFacts,
    HeldOut,
    HoldOutQuestion,
    Inspection,
    InspectQuestion,
    ModelFacts,
    SiteCheck,
)
from fedpipe_trainer.data.columns import Look, look_at
from fedpipe_trainer.data.formats import row_check, value_readers
from fedpipe_trainer.data.parts import anything_in, find_parts, hold_out
from fedpipe_trainer.data.values import Columns
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.failures import failure_of
from fedpipe_trainer.policy_file import policy_files
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.task_runtime import TaskRuntime

T = TypeVar("T")


def answer(question: str, settings: Settings) -> str:
    """The answer to a question, both as JSON.

    Raises:
        pydantic.ValidationError: it is no question.
    """
    match asked := QUESTION.validate_json(question):
        case InspectQuestion():
            return _inspect(asked, settings).to_json()
        case HoldOutQuestion():
            return _hold_out(asked).to_json()
        case CheckQuestion():
            return Checks(sites=tuple(_check(task, settings, asked) for task in asked.tasks)).to_json()


def _attempt(call: Callable[[], T], failed: Callable[[Failure], T]) -> T:
    """What a call returns, or what is made of its failure."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - every failure is told in the answer
        return failed(failure_of(error, elapsed_seconds=0.0))


def _inspect(question: InspectQuestion, settings: Settings) -> Inspection:
    given: Sequence[str | None] = question.validation or [None] * len(question.data)
    data = tuple(_facts(path, validation) for path, validation in zip(question.data, given, strict=True))
    model = question.model and _attempt(lambda: _model_facts(question.model, settings), lambda failure: ModelFacts(failure=failure))
    return Inspection(data=data, model=model or None)


def _facts(path: str, validation: str | None) -> DataFacts:
    return _attempt(lambda: _look(Path(path), validation), lambda failure: DataFacts(train=path, failure=failure))


def _look(path: Path, validation: str | None) -> DataFacts:
    try:
        parts = find_parts(path)
        chosen, found = Path(validation) if validation else parts.validation, look_at(parts.train)
        beside = look_at(chosen) if chosen else None
        if beside and not validation and not _has_columns_of(beside, found):  # a test file without labels, as contests have it
            chosen = beside = None
    except OSError as error:
        reason = f"the data {path} cannot be read ({error.strerror or type(error).__name__}): check its path and permissions"
        raise TaskFailed(FailureReason.BAD_DATA, reason) from error
    return DataFacts(
        train=str(parts.train),
        validation=str(chosen) if chosen else None,
        rows=found.rows,
        bad_rows=found.bad_rows,
        is_whole=found.is_whole and (beside is None or beside.is_whole),
        columns=found.columns,
        validation_columns=beside.columns if beside else (),
    )


def _has_columns_of(beside: Look, found: Look) -> bool:
    """Whether each column that has a value in every row of one file has some in the other."""
    filled = {column.name for column in beside.columns if column.rows}
    return all(column.name in filled for column in found.columns if column.rows == found.rows)


def _model_facts(source: str, settings: Settings) -> ModelFacts:
    # These import torch, which takes seconds.
    from fedpipe_trainer.model.description import describe_model  # noqa: PLC0415
    from fedpipe_trainer.model.headers import fetch_headers  # noqa: PLC0415
    from fedpipe_trainer.model.source import commit_of  # noqa: PLC0415

    of_hub = source.startswith("hf://")
    model = Model(source=source if of_hub else Path(source).absolute().as_uri())
    with runtime_of(settings) as runtime:
        facts = describe_model(fetch_headers(model, runtime).folder)
        return facts.model_copy(update={"commit": commit_of(model, runtime)}) if of_hub else facts


@contextmanager
def runtime_of(settings: Settings) -> Iterator[TaskRuntime]:
    """A runtime whose scratch folder is removed at the end."""
    with TemporaryDirectory(prefix="fedpipe-") as folder:
        yield TaskRuntime(Path(folder), settings.cache, write_progress=lambda _progress: None, stop_requested=lambda: False)


def _hold_out(question: HoldOutQuestion) -> HeldOut:
    def write() -> HeldOut:
        if policies := policy_files([question.data]):
            found = f"the policy file {policies[0]} counts for {question.data}, and would not for a copy of its rows"
            raise TaskFailed(FailureReason.POLICY_DENIED, f"{found}: make a validation file beside it, and name it by --validation")
        try:
            rows = hold_out(Path(question.data), _read_columns(question), Path(question.train), Path(question.validation))
        except OSError as error:
            reason = f"{error.filename or question.train} cannot be read or written ({error.strerror}): check its permissions and the disk"
            raise TaskFailed(FailureReason.BAD_DATA, reason) from error
        return HeldOut(train_rows=rows.train, validation_rows=rows.validation, skipped_rows=rows.skipped)

    return _attempt(write, lambda failure: HeldOut(failure=failure))


def _read_columns(question: HoldOutQuestion) -> Columns:
    """The columns as the task reads them."""
    task = question.objective
    return anything_in(question.columns) if task is None else Columns(question.columns, value_readers(task), row_check(task))


def _check(task: ProfileTask, settings: Settings, asked: CheckQuestion) -> SiteCheck:
    from fedpipe_trainer.recipes.check import check_site  # noqa: PLC0415 - as above

    in_claim = task.model.source in asked.models_in_claims
    with runtime_of(settings) as runtime:
        return _attempt(
            lambda: check_site(task, runtime, first_rows=asked.first_rows, model_in_claim=in_claim),
            lambda failure: SiteCheck(site=task.site, failures=(failure,)),
        )

"""What a profile checks before it loads a model: the policy, each row of both files, the model's files, its tokenizer, the lengths.

Each part is tried by itself, so that all problems are told at once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from fedpipe_trainer.consent import with_consent
from fedpipe_trainer.contract import CausalLM, Failure, FailureReason, Objective, Preference, ProfileTask, SequenceClassification
from fedpipe_trainer.contract.inspection import FileCheck, SiteCheck, TokenCheck
from fedpipe_trainer.data import Bounds, Examples, Rows, Tokenizer, encode, labels_of, select_rows, with_found_labels, with_run_labels
from fedpipe_trainer.failures import failure_of
from fedpipe_trainer.model import check_model, facts, read_tokenizer
from fedpipe_trainer.model.headers import fetch_headers
from fedpipe_trainer.model.source import local_folder
from fedpipe_trainer.task_runtime import TaskRuntime

T = TypeVar("T")
_FIRST_ROWS: Final = Bounds(characters=2**20)
"""Some hundred thousand tokens, which are counted in seconds."""
_NOT_CHECKED: Final = "so token lengths and the model itself were not checked"
_UNCUT: Final = 131072
"""The largest maxLength."""


@dataclass
class _Findings:
    """What was found so far."""

    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    train_notes: list[str] = field(default_factory=list)
    """What the chat template does to the training rows."""
    validation_notes: list[str] = field(default_factory=list)

    def attempt(self, call: Callable[[], T]) -> T | None:
        """What a call returns; None if it fails, and the failure is kept."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - every failure is told
            failure = failure_of(error, elapsed_seconds=0.0)
            self.failures += [failure] if failure not in self.failures else []
            return None


def check_site(task: ProfileTask, runtime: TaskRuntime, *, first_rows: bool = False, model_in_claim: bool = False) -> SiteCheck:
    """What a profile of this site would find out before it measures, or as much of it as the first rows of each file tell.

    Nothing is written. A model that is in a claim need not be on this machine.
    """
    found = _Findings()
    consent = found.attempt(lambda: with_consent(task))
    if consent is None:
        return SiteCheck(site=task.site, failures=tuple(found.failures))
    allowed = task.model_copy(update={"policy": consent.policy})
    bounds = _FIRST_ROWS if first_rows else None
    files = [_select(path, allowed, bounds, found) for path in (allowed.data.train, allowed.data.validation)]
    read = [rows for rows in files if rows is not None]
    objective = found.attempt(lambda: with_found_labels(allowed.objective, read, allowed.policy)) if read else None
    folder = _model_folder(allowed, runtime, found, in_claim=model_in_claim)
    tokens = _check_tokens(allowed, objective, folder, files, found) if folder and objective else None
    told = (found.train_notes, [note for note in found.validation_notes if note not in found.train_notes])
    train, validation = (
        None if rows is None else _file_check(replace(rows, notes=(*rows.notes, *notes)), objective, allowed.objective)
        for rows, notes in zip(files, told, strict=True)
    )
    return SiteCheck(
        site=task.site,
        failures=tuple(found.failures),
        warnings=tuple(found.warnings),
        train=train,
        validation=validation,
        tokens=tokens,
    )


def _select(path: str, task: ProfileTask, bounds: Bounds | None, found: _Findings) -> Rows | None:
    return found.attempt(lambda: select_rows(path, task.objective, task.policy, bounds=bounds))


def _file_check(rows: Rows, objective: Objective | None, asked: Objective) -> FileCheck:
    counts: Counter[str] = Counter()
    if isinstance(asked, SequenceClassification) and asked.problem != "Regression":
        counts.update(label for text in rows.rows.column(asked.label) for label in labels_of({asked.label: text}, asked))
    known = objective.labels if isinstance(objective, SequenceClassification) else ()
    return FileCheck(
        rows=len(rows.rows),
        skipped=rows.skipped,
        dropped=rows.dropped,
        is_whole=rows.is_whole,
        notes=rows.notes,
        labels={label: counts[label] for label in known},
        other_labels=len(set(counts) - set(known)),
    )


def _model_folder(task: ProfileTask, runtime: TaskRuntime, found: _Findings, *, in_claim: bool) -> Path | None:
    """The model's folder with whatever is not a weight; None if the model is elsewhere, which is a warning, or cannot be used."""
    source = task.model.source
    if source.startswith("s3://") and not task.model.files:
        found.warnings.append(f"the model {source} is in a bucket, {_NOT_CHECKED}")
        return None
    if source.startswith("file://") and not local_folder(source).exists():
        _tell_absent(local_folder(source), found, in_claim=in_claim)
        return None
    before = len(found.failures)
    headers = found.attempt(lambda: fetch_headers(task.model, runtime))
    if headers is None and found.failures[before:] and found.failures[-1].reason is FailureReason.TRANSFER_FAILED:
        found.warnings.append(f"{found.failures.pop().message}; {_NOT_CHECKED}")
    return headers.folder if headers else None


def _tell_absent(folder: Path, found: _Findings, *, in_claim: bool) -> None:
    """A claim's folder may be on the cluster alone; that of a source `file://` is the trainer's own."""
    if in_claim:
        found.warnings.append(f"the model's folder in its claim, {folder}, is not on this machine, {_NOT_CHECKED}")
        return
    advice = "correct model.source, or, if the trainer's image has this folder, give the same command in that image"
    found.failures.append(
        Failure(reason=FailureReason.BAD_MODEL, message=f"the model folder {folder} does not exist on this machine: {advice}")
    )


def _check_tokens(
    task: ProfileTask, objective: Objective, folder: Path, files: Sequence[Rows | None], found: _Findings
) -> TokenCheck | None:
    """Check the model against the task, and count the tokens of the training rows."""
    tokenizer = found.attempt(lambda: read_tokenizer(folder))
    if tokenizer is None:
        return None
    found.attempt(lambda: check_model(folder, objective, tokenizer, max_new_tokens=task.max_new_tokens))
    found.attempt(lambda: facts(folder, objective, task.target_modules, task.model.attn_implementation, task.model.modules_to_save))
    train, validation = files
    if validation is not None:
        noted = found.validation_notes.append
        found.attempt(lambda: encode(with_run_labels(task.data.validation, validation, objective).rows, objective, tokenizer, tell=noted))
    if train is None:
        return None
    tell = found.train_notes.append
    return found.attempt(lambda: _count_tokens(with_run_labels(task.data.train, train, objective), objective, tokenizer, tell))


def _count_tokens(train: Rows, objective: Objective, tokenizer: Tokenizer, tell: Callable[[str], None]) -> TokenCheck:
    examples = encode(train.rows, objective, tokenizer, tell=tell)
    lengths = _lengths(examples, objective)
    goes_on = isinstance(objective, CausalLM) and objective.format == "Text"  # in the next sample, so that nothing is cut
    may_be_cut = max(lengths) >= objective.max_length or len(lengths) < len(train.rows)  # pairs may be alike but for what is cut
    uncut = objective.model_copy(update={"max_length": _UNCUT})
    whole = _lengths(encode(train.rows, uncut, tokenizer), objective) if may_be_cut and not goes_on else lengths
    return TokenCheck(
        samples=len(lengths),
        mean=sum(lengths) / len(lengths),
        longest=max(whole),
        max_length=objective.max_length,
        cut=sum(length > objective.max_length for length in whole),
        target_share=_target_share(examples, objective),
    )


def _lengths(examples: Examples, objective: Objective) -> list[int]:
    """What maxLength bounds of each sample: of a pair of answers the longer one with its prompt, which is half of the sample."""
    return [length // 2 for length in examples.lengths] if isinstance(objective, Preference) else examples.lengths


def _target_share(examples: Examples, objective: Objective) -> float:
    return float(examples.arrays[2].mean()) if isinstance(objective, CausalLM | Preference) else 1.0

"""The data owner's policy: what may leave a site, and whether a task may use the site's data at all. Pure.

The operator has it from `EdgeSite.spec.policy`, the trainer also from a file on the data volume. Both evaluate it by these functions, and
of two policies the stricter counts, field by field (`stricter`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from string import Formatter
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, Field

from fedpipe_trainer.contract.base import FrozenValue
from fedpipe_trainer.contract.objective import (
    CHAT_FORMATS,
    FORMAT_COLUMNS,
    CausalLM,
    Column,
    Objective,
    Preference,
    Seq2SeqLM,
    SequenceClassification,
)

POLICY_FILE: Final = "fedpipe-policy.yaml"
"""The file at the root of a data volume that holds the data owner's policy, as `EdgeSite.spec.policy` does."""
MAX_SHOWN_ROWS: Final = 20
MAX_POLICY_LABELS: Final = 10_000

TaskType = Literal["SequenceClassification", "CausalLM", "Seq2SeqLM", "Preference"]
RunName = Annotated[str, Field(min_length=1, max_length=253)]
LabelValue = Annotated[str, Field(max_length=1024)]
T = TypeVar("T", bound=str)


def _as_set(values: tuple[T, ...]) -> tuple[T, ...]:
    """Equal lists are equal policies, whatever their order."""
    return tuple(sorted(set(values)))


_AsSet: Final = AfterValidator(_as_set)


class TrainingLosses(StrEnum):
    """Which of its training losses a site sends."""

    BY_STEP = "ByStep"
    """That of each step."""
    MEAN = "Mean"
    """Their mean alone."""


class RunSelector(FrozenValue):
    """Runs that may use a site: those of these names that carry these labels."""

    names: Annotated[tuple[RunName, ...], Field(max_length=100), _AsSet] | None = None
    """None: runs of any name. Empty: no run."""
    match_labels: Annotated[dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=63)]], Field(max_length=64)] = {}

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether it selects a run of this name with these labels."""
        return (self.names is None or name in self.names) and self.match_labels.items() <= labels.items()


class DataPolicy(FrozenValue):
    """What the owner of a site's data allows. The defaults allow any run to read its task's columns, and show no row to anyone.

    Of a list, None allows everything, and an empty one nothing.
    """

    runs: RunSelector = RunSelector()
    columns: Annotated[tuple[Column, ...], Field(max_length=1000), _AsSet] | None = None
    """Columns that a task may read."""
    task_types: Annotated[tuple[TaskType, ...], Field(max_length=4), _AsSet] | None = None
    labels: Annotated[tuple[LabelValue, ...], Field(max_length=MAX_POLICY_LABELS), _AsSet] | None = None
    """Values of the label column that may be used: rows with another one are left out."""
    max_labels: Annotated[int, Field(ge=0, le=MAX_POLICY_LABELS)] = 100
    """Values of the label column that a profile may name, where the task names none itself."""
    max_shown_rows: Annotated[int, Field(ge=0, le=MAX_SHOWN_ROWS)] = 0
    """Rows that may be shown with their predictions: the first ones of the validation file, whatever the run."""
    min_sites: Annotated[int, Field(ge=1, le=1000)] = 2
    """Sites, at least, of whose updates an aggregate with this site's is made."""
    local_baseline: bool = False
    """Whether the site may be trained alone, to compare a run with it."""
    training_losses: TrainingLosses = TrainingLosses.BY_STEP


@dataclass(frozen=True)
class DataUse:
    """What a task does with a site's data, as far as a policy asks."""

    run: str
    run_labels: Mapping[str, str]
    objective: Objective
    contributors: int
    """Sites, at least, of whose updates an aggregate with this site's is made."""
    is_local_baseline: bool = False


def denial(policy: DataPolicy, use: DataUse) -> str:
    """Why the policy forbids this use, in words of the task and of the policy's fields; empty if it allows it."""
    found = (
        _denied_run(policy, use),
        _denied_columns(policy, use),
        _denied_type(policy, use),
        _denied_contributors(policy, use),
    )
    return "; ".join(reason for reason in found if reason)


def stricter(one: DataPolicy, other: DataPolicy) -> DataPolicy:
    """Both policies at once: of each field the stricter value, so that it allows what both allow and nothing else."""
    return DataPolicy(
        runs=_both_selectors(one.runs, other.runs),
        columns=_both(one.columns, other.columns),
        task_types=_both(one.task_types, other.task_types),
        labels=_both(one.labels, other.labels),
        max_labels=min(one.max_labels, other.max_labels),
        max_shown_rows=min(one.max_shown_rows, other.max_shown_rows),
        min_sites=max(one.min_sites, other.min_sites),
        local_baseline=one.local_baseline and other.local_baseline,
        training_losses=TrainingLosses.MEAN if TrainingLosses.MEAN in {one.training_losses, other.training_losses} else one.training_losses,
    )


def columns_read(objective: Objective) -> frozenset[str]:
    """The columns that a task reads.

    Raises:
        ValueError: a template cannot be parsed.
    """
    return frozenset(fields_of_columns(objective))


def fields_of_columns(objective: Objective) -> dict[str, str]:
    """By column that a task reads: the field of the spec that names it, for messages.

    Raises:
        ValueError: a template cannot be parsed.
    """
    named = ((column, field) for field, column in _named_columns(objective) if column)
    return {column: f"task.{field}" for column, field in reversed(list(named))}  # of two fields the first


def _named_columns(objective: Objective) -> list[tuple[str, str | None]]:
    """The fields of a task that name columns, each with one of them; None where it names none."""
    if isinstance(objective, SequenceClassification):
        return [("text", objective.text), ("textPair", objective.text_pair), ("label", objective.label)]
    if isinstance(objective, Preference):
        answers = [("chosenColumn", objective.chosen_column), ("rejectedColumn", objective.rejected_column)]
        return [("promptColumn", objective.prompt_column), *answers]
    if objective.format in FORMAT_COLUMNS:
        return [("format", column) for column in FORMAT_COLUMNS[objective.format]]
    if isinstance(objective, CausalLM) and objective.format == "Text":
        return [("text", objective.text)]
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS:
        return [("messages", objective.conversation_column), ("tools", objective.tools)]
    templates = (("prompt", objective.prompt), ("response", objective.response))
    return [(field, column) for field, template in templates for _, column, _, _ in Formatter().parse(template or "")]


def optional_columns(objective: Objective) -> tuple[str, ...]:
    """The columns that a task also reads, if a file has them and the site's policy allows them: those of LLaMA-Factory."""
    found: tuple[str, ...] = ()
    if isinstance(objective, Preference) or (isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS):
        found = ("system",)
    elif isinstance(objective, CausalLM | Seq2SeqLM) and objective.format == "Alpaca":
        found = ("system", "history")
    return tuple(column for column in found if column not in columns_read(objective))


def _denied_run(policy: DataPolicy, use: DataUse) -> str:
    if policy.runs.matches(use.run, use.run_labels):
        return ""
    return f"policy.runs does not select the run {use.run}, by its name or its labels"


def _denied_columns(policy: DataPolicy, use: DataUse) -> str:
    """The same for a column that the data have and for one that they lack: else a run's author would learn which they have."""
    named = fields_of_columns(use.objective)
    denied = [] if policy.columns is None else sorted(named.keys() - set(policy.columns))
    if not denied:
        return ""
    fields = " and ".join(dict.fromkeys(named[column] for column in denied))
    one, it = ("a name", "them") if len(denied) > 1 else ("it", "it")
    advice = f"correct {fields} if {one} is misspelled, or have the data owner add {it} (whether the data have {it} is not told)"
    return f"policy.columns does not allow {named_columns(denied, named)}: {advice}"


def _denied_type(policy: DataPolicy, use: DataUse) -> str:
    is_allowed = policy.task_types is None or use.objective.type in policy.task_types
    return "" if is_allowed else f"policy.taskTypes does not allow {use.objective.type}"


def _denied_contributors(policy: DataPolicy, use: DataUse) -> str:
    if use.contributors >= policy.min_sites or (use.is_local_baseline and policy.local_baseline):
        return ""
    if use.is_local_baseline:
        return "policy.localBaseline does not allow to train the site alone"
    return (
        f"policy.minSites is {policy.min_sites}, and the run may aggregate as few as {use.contributors}: raise sites.quorum, or add sites"
    )


def named_columns(columns: Collection[str], fields: Mapping[str, str]) -> str:
    """Columns in words, each with the field of the spec that names it, where it is known."""
    named = [f"{column!r} ({fields[column]})" if column in fields else repr(column) for column in columns]
    return f"the column{'s' if len(named) > 1 else ''} {', '.join(named)}"


def _both(one: tuple[T, ...] | None, other: tuple[T, ...] | None) -> tuple[T, ...] | None:
    """What is in both lists; None, a list of everything, changes nothing."""
    if one is None or other is None:
        return other if one is None else one
    return tuple(sorted(set(one) & set(other)))


def _both_selectors(one: RunSelector, other: RunSelector) -> RunSelector:
    """Selects the runs that both select: none, if they require different values of a label."""
    contradict = any(other.match_labels.get(key, value) != value for key, value in one.match_labels.items())
    pairs = sorted([*one.match_labels.items(), *other.match_labels.items()], reverse=True)
    return RunSelector(names=() if contradict else _both(one.names, other.names), match_labels=dict(pairs))

"""Checks that a schema cannot express: labels are several, templates contain a column, patterns compile, objects refer to each other."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import Final

from fedpipe_operator.api.documents import FieldPath, FieldProblem
from fedpipe_operator.api.edgesite import EdgeSite
from fedpipe_operator.api.finetune import FederatedFineTune, PlanningMode
from fedpipe_operator.api.training import PreferenceTask, SequenceClassificationTask
from fedpipe_operator.formatting import excerpt

_DIRECTIONS: Final = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Classes of characters after which a text is shown in another order."""
_SHOWN: Final = 60
"""Characters of a column's name in a message."""


def check_object(value: EdgeSite | FederatedFineTune) -> list[FieldProblem]:
    """Problems within one object whose fields are each valid."""
    if isinstance(value, EdgeSite):
        return []
    task = value.spec.task
    if isinstance(task, SequenceClassificationTask):
        return list(_check_labels(task.labels))
    if isinstance(task, PreferenceTask):
        return []
    problems = [*_check_template("prompt", task.prompt), *_check_template("response", task.response)]
    return problems if task.slot_pattern is None else [*problems, *_check_slot_pattern(task.slot_pattern)]


def check_objects(objects: Sequence[EdgeSite | FederatedFineTune], *, are_all: bool) -> list[tuple[int, FieldPath, str]]:
    """Problems between these objects: the index of the object, the path of the field, the message.

    Args:
        objects: the valid objects of some files.
        are_all: whether the files have no invalid ones. Only then can an object be said to be missing.
    """
    duplicates = list(_duplicate_names(objects))
    # Without any site nothing is missing: the sites of a run may already be on the cluster.
    if not are_all or not any(isinstance(item, EdgeSite) for item in objects):
        return duplicates
    return [*duplicates, *_runs_without_sites(objects), *_plans_without_sites(objects), *_sites_without_plans(objects)]


def matches(run: FederatedFineTune, site: EdgeSite) -> bool:
    """Whether the run's selector matches this site: the same namespace, and every label of the selector."""
    required = run.spec.sites.selector.match_labels
    return site.metadata.namespace == run.metadata.namespace and required.items() <= site.metadata.labels.items()


def _check_labels(labels: Sequence[str]) -> Iterator[FieldProblem]:
    path = ("spec", "task", "labels")
    if odd := [at for at, label in enumerate(labels) if not label or label != label.strip() or any(map(_does_more_than_show, label))]:
        what = "is empty, or has space around it or control characters: a site's label would not be the same"
        yield (*path, odd[0]), f"the label {what}; write it without"
    if len(labels) == 1:
        yield path, "a classification needs two labels: declare all of them, or none to have those that two sites or more have"
    if len(set(labels)) < len(labels):
        yield path, f"{len(labels) - len(set(labels))} of these {len(labels)} labels are there twice: remove them"


def _does_more_than_show(character: str) -> bool:
    """Control characters, line breaks too, and changes of direction. What is declared is what sites may have, and no more.

    What a site's label may have is `fedpipe_trainer.contract.visible`, which the API's types do not know.
    """
    return unicodedata.category(character) == "Cc" or unicodedata.bidirectional(character) in _DIRECTIONS


def _check_template(field: str, template: str | None) -> Iterator[FieldProblem]:
    if template is None:
        return
    path = ("spec", "task", field)
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None]
    except ValueError as error:
        yield path, f"invalid template ({error}): write a literal brace twice, as {{{{ or }}}}"
        return
    if not fields:
        yield path, "the template contains no column, so every row would produce the same text: add a column name in braces, such as {text}"
    for name, spec, conversion in fields:
        if not all(name.split(".")) or set(name) & set("[]"):
            yield path, f"{{{excerpt(name, _SHOWN)}}} is not a column: write a plain column name in braces, such as {{text}}"
        if spec or conversion:
            shown = excerpt(f"{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}", _SHOWN)
            advice = "write the column's name alone, and cut or convert the texts in the data"
            yield path, f"{{{shown}}} asks for a form of the text, which a template does not have: {advice}"


def _check_slot_pattern(pattern: str) -> Iterator[FieldProblem]:
    path = ("spec", "task", "slotPattern")
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:  # the last two: a number that is too large, groups in many groups
        yield path, f"invalid regular expression ({error}): correct it"
        return
    if groups == 0:
        yield path, "the regular expression has no group: put the part that a response must contain in parentheses"


def _duplicate_names(objects: Sequence[EdgeSite | FederatedFineTune]) -> Iterator[tuple[int, FieldPath, str]]:
    keys = [(item.kind, item.metadata.namespace, item.metadata.name) for item in objects]
    counts = Counter(keys)
    for index, key in enumerate(keys):
        if key in keys[:index]:
            yield index, ("metadata", "name"), f"{counts[key]} objects of kind {key[0]} have this name: rename all but one"


def _runs_without_sites(objects: Sequence[EdgeSite | FederatedFineTune]) -> Iterator[tuple[int, FieldPath, str]]:
    sites, runs = _by_kind(objects)
    for index, run in runs.items():
        if not any(matches(run, site) for site in sites):
            names = ", ".join(site.name for site in sites)
            message = (
                f"no EdgeSite given ({names}) is in the run's namespace and has these labels: correct the selector, or label the sites"
            )
            yield index, ("spec", "sites", "selector"), message


def _plans_without_sites(objects: Sequence[EdgeSite | FederatedFineTune]) -> Iterator[tuple[int, FieldPath, str]]:
    """Given plans of sites that do not exist. If the run's namespace has none at all, `_runs_without_sites` reports it."""
    sites, runs = _by_kind(objects)
    for index, run in runs.items():
        names = [site.name for site in sites if site.metadata.namespace == run.metadata.namespace]
        for position, plan in enumerate(run.spec.planning.plans if names else ()):
            if plan.site is not None and plan.site not in names:
                message = f"no EdgeSite given in the run's namespace ({', '.join(names)}) is named {plan.site}: correct it, or add one"
                yield index, ("spec", "planning", "plans", position, "site"), message


def _sites_without_plans(objects: Sequence[EdgeSite | FederatedFineTune]) -> Iterator[tuple[int, FieldPath, str]]:
    """Sites of a run in mode Manual that none of its plans is for."""
    sites, runs = _by_kind(objects)
    for index, run in runs.items():
        planned = {plan.site for plan in run.spec.planning.plans}
        missing = [site.name for site in sites if matches(run, site) and not {site.name, None} & planned]
        if run.spec.planning.mode is PlanningMode.MANUAL and missing:
            message = f"no plan for {', '.join(missing)}: add one for each, add one without a site, or narrow spec.sites.selector"
            yield index, ("spec", "planning", "plans"), message


def _by_kind(objects: Sequence[EdgeSite | FederatedFineTune]) -> tuple[list[EdgeSite], dict[int, FederatedFineTune]]:
    """The sites, and the runs by their index."""
    runs = {index: item for index, item in enumerate(objects) if isinstance(item, FederatedFineTune)}
    return [item for item in objects if isinstance(item, EdgeSite)], runs

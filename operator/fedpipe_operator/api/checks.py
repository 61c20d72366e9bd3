"""What a schema cannot say: a template that names a column, a pattern that compiles, objects that fit one another."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from string import Formatter

from fedpipe_operator.api.documents import Path
from fedpipe_operator.api.edgesite import EdgeSite
from fedpipe_operator.api.finetune import FederatedFineTune
from fedpipe_operator.api.training import SequenceClassificationTask

Told = tuple[Path, str]
"""Where in the object, and what to tell the user."""


def problems_within(value: EdgeSite | FederatedFineTune) -> list[Told]:
    """What is wrong in one object although its fields have the right form."""
    if isinstance(value, EdgeSite) or isinstance(value.spec.task, SequenceClassificationTask):
        return []
    task = value.spec.task
    told = [*_template("prompt", task.prompt), *_template("response", task.response)]
    return told if task.slot_pattern is None else [*told, *_pattern(task.slot_pattern)]


def problems_between(objects: Sequence[EdgeSite | FederatedFineTune]) -> list[tuple[int, Path, str]]:
    """What is wrong with these objects taken together: the index of the object, where in it, what to tell the user."""
    return [*_doubles(objects), *_runs_without_sites(objects)]


def matches(run: FederatedFineTune, site: EdgeSite) -> bool:
    """Whether the run's selector takes this site: the same namespace, and every label of the selector."""
    wanted = run.spec.sites.selector.match_labels
    return site.metadata.namespace == run.metadata.namespace and wanted.items() <= site.metadata.labels.items()


def _template(field: str, template: str) -> Iterator[Told]:
    path = ("spec", "task", field)
    try:
        named = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        yield path, f"the template cannot be read ({error}): write a brace that is meant as such twice"
        return
    if not named:
        yield path, "the template names no column, so every row would give the same text: write a column's name in braces, such as {text}"
    for name in named:
        if not name or set(name) & set(".[]"):
            yield path, f"{{{name}}} is no column: write a plain name in braces, such as {{text}}"


def _pattern(pattern: str) -> Iterator[Told]:
    path = ("spec", "task", "slotPattern")
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        yield path, f"this is no regular expression ({error}): correct it"
        return
    if groups == 0:
        yield path, "the pattern has no group: put what a response must name in parentheses"


def _doubles(objects: Sequence[EdgeSite | FederatedFineTune]) -> Iterator[tuple[int, Path, str]]:
    keys = [(one.kind, one.metadata.namespace, one.metadata.name) for one in objects]
    counts = Counter(keys)
    for index, key in enumerate(keys):
        if key in keys[:index]:
            yield index, ("metadata", "name"), f"{counts[key]} objects of kind {key[0]} have this name: rename all but one"


def _runs_without_sites(objects: Sequence[EdgeSite | FederatedFineTune]) -> Iterator[tuple[int, Path, str]]:
    """Only where sites are given at all: a run alone may well find its sites on the cluster."""
    sites = [one for one in objects if isinstance(one, EdgeSite)]
    for index, one in enumerate(objects):
        if isinstance(one, FederatedFineTune) and sites and not any(matches(one, site) for site in sites):
            names = ", ".join(site.name for site in sites)
            message = (
                f"none of the EdgeSites given ({names}) has the run's namespace and these labels: correct the selector, or label the sites"
            )
            yield index, ("spec", "sites", "selector"), message

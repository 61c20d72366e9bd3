"""`fedpipe validate --data`: what the sites' profiles would say of their data, found on this machine by the trainer's own reader."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import typer

from fedpipe_operator.api import EdgeSite, FederatedFineTune
from fedpipe_operator.api.checks import matches
from fedpipe_operator.cli.files import Objects
from fedpipe_operator.errors import UserError
from fedpipe_operator.formatting import counted
from fedpipe_operator.local.inspector import ask
from fedpipe_operator.reconcile.placement import in_folders
from fedpipe_operator.reconcile.tasks import TaskContext, TaskInputs, profile_task
from fedpipe_operator.rounds import Run, StartProfile
from fedpipe_operator.rounds.model_claims import private_claims
from fedpipe_trainer.contract import Model, ProfileTask, SequenceClassification
from fedpipe_trainer.contract.inspection import CheckQuestion, Checks, FileCheck, SiteCheck, TokenCheck

_BUCKET: Final = "s3://"
_NOWHERE: Final = "file:///dev/null"
_SHOWN_LABELS: Final = 20


class _Nowhere:
    """URLs of a task that is not performed."""

    def url_to_read(self, key: str, seconds: int) -> str:
        del key, seconds
        return _NOWHERE

    def url_to_write(self, key: str, seconds: int) -> str:
        del key, seconds
        return _NOWHERE


@dataclass(frozen=True)
class Where:
    """Where the data are on this machine."""

    volumes: Path
    """Folder of the claims."""
    folder: Path | None = None
    """In place of the claim of the data."""
    sites: tuple[str, ...] = ()
    """Those that are checked; empty: all that the run selects."""


def check_data(objects: Objects, where: Where) -> bool:
    """Print what was found of the data of each site; whether each profile could begin.

    Raises:
        UserError: there is no run, no such site, or no trainer.
    """
    question = _question(objects, where)
    tasks = question.tasks
    typer.echo(f"reading the data of {', '.join(task.site for task in tasks)}…", err=True)
    checks = ask(question, Checks)
    lines = [line for site in checks.sites for line in lines_of(site)]
    if not where.sites:  # else it is not known what the others have
        lines += _runs_lines(tasks, checks.sites)
    for line in lines:
        _print(line)
    return not any(site.failures for site in checks.sites)


def check_first_rows(objects: Objects, where: Where) -> bool:
    """Print in a sentence for each site what was found in the first rows of its data; whether each profile could begin.

    Raises:
        UserError: as `check_data`.
    """
    checks = ask(_question(objects, where).model_copy(update={"first_rows": True}), Checks)
    for site in checks.sites:
        for line in short_lines_of(site):
            _print(line)
    return not any(site.failures for site in checks.sites)


def _question(objects: Objects, where: Where) -> CheckQuestion:
    tasks = tuple(_tasks(objects, where))
    of_claims = {(run.metadata.namespace, run.metadata.name) for run in objects.runs if run.spec.model.claim is not None}
    sources = {task.model.source for task in tasks if (task.run.namespace, task.run.name) in of_claims}
    return CheckQuestion(tasks=tasks, models_in_claims=tuple(sorted(sources)))


def _print(line: str) -> None:
    typer.echo("".join(character if character.isprintable() else " " for character in line))


def _tasks(objects: Objects, where: Where) -> list[ProfileTask]:
    """The profile tasks of the runs and their sites, as the operator would give them to trainers."""
    if not objects.runs:
        raise UserError(
            "NothingToCheck", "the data are checked for a task, and these files have no FederatedFineTune: name a file that has one"
        )
    found = [_task(run, site, objects.sites, where) for run in objects.runs for site in _sites(run, objects.sites, where)]
    if missing := sorted(set(where.sites) - {task.site for task in found}):
        raise UserError("NothingToCheck", f"no run of these files selects a site {missing[0]}: correct --site, or the run's selector")
    if not found:
        raise UserError("NothingToCheck", "these files have no EdgeSite that the run selects: name the files of the sites, too")
    if where.folder is not None and len({task.site for task in found}) > 1:
        names = ", ".join(sorted({task.site for task in found}))
        raise UserError("SitesAmbiguous", f"--folder holds the data of one site, and these are {names}: name one by --site")
    return found


def _sites(run: FederatedFineTune, sites: Sequence[EdgeSite], where: Where) -> list[EdgeSite]:
    return [site for site in sites if matches(run, site) and (not where.sites or site.name in where.sites)]


def _task(resource: FederatedFineTune, site: EdgeSite, sites: Sequence[EdgeSite], where: Where) -> ProfileTask:
    selected = tuple(one for one in sites if matches(resource, one))
    run = Run(resource, selected, private_claims=private_claims(sites, resource.metadata.namespace))
    return profile_task(TaskContext(run=run, urls=_Nowhere()), StartProfile(site.name, 0), _inputs(run, site, where))


def _inputs(run: Run, site: EdgeSite, where: Where) -> TaskInputs:
    folders = in_folders(where.volumes)
    if where.folder is not None:
        folder = str(where.folder.resolve())
        folders = replace(folders, data_folder=lambda _claim: folder)
    source = run.spec.model.source
    if source.startswith(_BUCKET):  # its URLs would need the store's credentials
        return TaskInputs(model=Model(source=source), data=folders.data(site))
    return folders.inputs(run, site.name)


def _runs_lines(tasks: Sequence[ProfileTask], checks: Sequence[SiteCheck]) -> Iterator[str]:
    """What is only seen of all sites of a run together."""
    for run in dict.fromkeys(task.run for task in tasks):
        found = [(task, check) for task, check in zip(tasks, checks, strict=True) if task.run == run]
        objective = found[0][0].objective
        if not isinstance(objective, SequenceClassification) or objective.labels:
            continue
        if alone := labels_of_one_site(check for _, check in found):
            shown = [f"{label!r} ({site})" for label, site in alone.items()][:_SHOWN_LABELS]
            more = f" and {len(alone) - len(shown)} more" if len(alone) > len(shown) else ""
            rule = "task.labels is empty, so only labels count that two sites have. One site alone has, and its rows of them are dropped:"
            yield f"FederatedFineTune {run.name}: {rule} {', '.join(shown)}{more}: declare task.labels to learn them, or correct the data"


def labels_of_one_site(checks: Iterable[SiteCheck]) -> dict[str, str]:
    """Labels of the training data that one of several sites has, and the others have not, with its name."""
    by_site = {check.site: {label for label, count in check.train.labels.items() if count} for check in checks if check.train}
    sites = Counter(label for labels in by_site.values() for label in labels)
    found = ((label, site) for site, labels in by_site.items() for label in labels if sites[label] == 1)
    return dict(sorted(found)) if len(by_site) > 1 else {}


def short_lines_of(check: SiteCheck) -> list[str]:
    """A sentence on the rows that were read, or one for each reason why a run could not read them; then what was not checked."""
    failures = [f"{check.site}: a run could not use these data: {failure.reason}: {failure.message}" for failure in check.failures]
    read = [] if failures else [f"{check.site}: {_read(check)}"]
    return [*failures, *read, *(f"{check.site}: not checked: {warning}" for warning in check.warnings)]


def _read(check: SiteCheck) -> str:
    files = [(part, file) for part, file in (("training", check.train), ("validation", check.validation)) if file]
    counts = [f"{'' if file.is_whole else 'the first '}{counted(file.rows, 'row')} for {part}" for part, file in files]
    notes = [note for _, file in files for note in file.notes]
    return "; ".join([f"{' and '.join(counts)} can be read", *notes, *(_token_lines(check.tokens) if check.tokens else [])])


def lines_of(check: SiteCheck) -> list[str]:
    """What was found of a site, a sentence a line: problems first."""
    lines = [f"{failure.reason}: {failure.message}" for failure in check.failures]
    lines += [f"not checked: {warning}" for warning in check.warnings]
    for part, file in (("training", check.train), ("validation", check.validation)):
        lines += _file_lines(part, file) if file else []
    lines += [f"tokens: {line}" for line in _token_lines(check.tokens)] if check.tokens else []
    verdict = "its profile would fail" if check.failures else "data checked"
    return [f"EdgeSite {check.site}: {verdict}", *(f"  {line}" for line in lines)]


def _file_lines(part: str, file: FileCheck) -> list[str]:
    left_out = [f"{count} {what}" for count, what in ((file.skipped, "skipped"), (file.dropped, "dropped")) if count]
    lines = [f"{part}: {file.rows} rows{''.join(f', {one}' for one in left_out)}", *file.notes]
    if file.labels or file.other_labels:
        lines.append(f"{part} labels: {_labels_text(file)}")
    if absent := [label for label, count in file.labels.items() if not count]:
        lines.append(f"{part}: no row has the label {', '.join(map(repr, absent[:_SHOWN_LABELS]))}, which the run declares")
    return lines


def _labels_text(file: FileCheck) -> str:
    named = [f"{label!r} {count}" for label, count in file.labels.items()]
    more = [f"{len(named) - _SHOWN_LABELS} more"] if len(named) > _SHOWN_LABELS else []
    others = [f"{file.other_labels} that are not named"] if file.other_labels else []
    return ", ".join([*named[:_SHOWN_LABELS], *more, *others])


def _token_lines(tokens: TokenCheck) -> list[str]:
    lines = [f"{counted(tokens.samples, 'sample')} of {tokens.mean:.0f} tokens on average, the longest has {tokens.longest}"]
    if tokens.cut:
        advice = "raise task.maxLength to keep them, as far as the model has positions"
        lines.append(f"{tokens.cut} samples are longer than task.maxLength, {tokens.max_length}, and are cut: {advice}")
    if round(100 * tokens.target_share) < 100:  # noqa: PLR2004 - of plain texts all but the first token of each
        lines.append(f"{tokens.target_share:.0%} of them count in the loss: the answers'")
    return lines

"""`fedpipe init`: from data and a model to the two objects, with a comment for each choice."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from fedpipe_operator.api import FederatedFineTune, TaskSpec
from fedpipe_operator.api.finetune import SOURCE_PATTERN
from fedpipe_operator.api.meta import NAME_MAX, NAME_PATTERN
from fedpipe_operator.api.parse import read_documents
from fedpipe_operator.cli.files import read, volumes_beside
from fedpipe_operator.cli.new_files import removed_if_it_fails
from fedpipe_operator.conversion import objective
from fedpipe_operator.errors import UserError
from fedpipe_operator.formatting import excerpt
from fedpipe_operator.local.inspector import ask
from fedpipe_operator.starter import CannotTellError, Choices, Guess, Site, Wanted, columns_of_site, guess_task, write_document
from fedpipe_operator.starter.layout import HELD_OUT, MODELS, Link, link_of, path_in_claim, site_names, slug, title_of
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.contract.inspection import DataFacts, HeldOut, HoldOutQuestion, Inspection, InspectQuestion, ModelFacts

_HUB_NAME: Final = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")
_ELSEWHERE: Final = ("s3://", "pvc://")
_STDOUT: Final = "-"
_INVALID: Final = 2
_LONGEST_LINE: Final = 4096
_YAML: Final = (".yaml", ".yml")


@dataclass(frozen=True)
class _Model:
    """The model as the user gave it."""

    asked: str
    """What the trainer looks at; empty: a model that is not here."""
    source: str
    """`spec.model.source`."""
    folder: Path | None = None
    """Of a model on this machine."""


@dataclass(frozen=True)
class _PlannedSite:
    """A site, the links in its claim's folder, and whether a part is to be held out."""

    site: Site
    links: tuple[Link, ...]
    hold_out: HoldOutQuestion | None = None


def command(
    data: Annotated[list[Path], typer.Argument(metavar="DATA…", help="A file or folder of data for each site.")],
    model: Annotated[str, typer.Option(help="A model's folder, or its name on a hub (ORG/NAME, hf://ORG/NAME@REVISION).")],
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - prints it and writes nothing.")] = "fedpipe.yaml",
    validation: Annotated[
        list[Path] | None, typer.Option(help="Validation data, once for each DATA; default: found beside it, or a tenth of its rows.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: made of the first DATA.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="Name of a site, once for each DATA; default: made of DATA.")] = None,
    text: Annotated[str, typer.Option(metavar="COLUMN", help="The column with the text, where the guess is another.")] = "",
    label: Annotated[str, typer.Option(metavar="COLUMN", help="The column to predict, where the guess is another.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what an earlier init wrote.")] = False,
) -> None:
    """Write a FederatedFineTune and its EdgeSites for these data and this model.

    The first rows of the data and the model's configuration are looked at, no weights. Beside the file, volumes/ gets links to the data and
    to the model, so that `fedpipe validate` and `fedpipe run` work at once. At the end the first rows are read as a run reads them: the
    exit status is 2 if it could not, and what was written stays.
    """
    try:
        _require_counts(data, validation or [], site or [])
        target = None if output == _STDOUT else _target(Path(output), force=force)
        _init(data, validation or [], _model(model), target, Names(name, tuple(site or ())), Wanted(text, label), force=force)
    except CannotTellError as error:
        raise _ended(str(error), _INVALID) from None
    except UserError as error:
        raise _ended(f"{error.reason}: {error.message}", 1) from None
    except OSError as error:
        raise _ended(f"{error.filename or output} cannot be written ({error.strerror}): check its path and permissions", 1) from None


@dataclass(frozen=True)
class Names:
    """Names that the user gave."""

    run: str | None
    sites: tuple[str, ...]


def _ended(message: str, status: int) -> typer.Exit:
    for line in message.split("\n"):
        _note(line)
    return typer.Exit(status)


def _note(text: str) -> None:
    """What is no result, so that standard output has the YAML alone."""
    typer.echo(excerpt(text, _LONGEST_LINE), err=True)


def _target(path: Path, *, force: bool) -> Path:
    """The file that is written: told at once if it may not be."""
    if path.is_dir():
        raise CannotTellError(f"{path} is a folder: name a file in it with --output")
    if path.suffix.lower() not in _YAML:  # with --force, a slip of the hand would overwrite data
        raise CannotTellError(f"{path} does not end in .yaml or .yml: name it so with --output")
    if path.exists() and not force:
        raise CannotTellError(f"{path} is there already: name another file with --output, or overwrite it with --force")
    return path


def _require_counts(data: Sequence[Path], validation: Sequence[Path], sites: Sequence[str]) -> None:
    for option, given in (("--validation", validation), ("--site", sites)):
        if given and len(given) != len(data):
            raise CannotTellError(f"{option} is given {len(given)} times for {len(data)} DATA: give it once for each, in the same order")


def _model(given: str) -> _Model:
    """The model that the user means: a folder that is there, else a name on a hub."""
    folder = Path(given.removeprefix("file://"))
    if folder.exists():
        return _Model(str(folder), f"pvc://{MODELS}/{slug(folder.absolute().name, 'base')}", folder)
    if given.startswith(_ELSEWHERE) and re.match(SOURCE_PATTERN, given):
        return _Model("", given)
    name = given.removeprefix("hf://")
    if _HUB_NAME.match(name) and not given.startswith("file://"):
        source = f"hf://{name if '@' in name else f'{name}@main'}"
        return _Model(source, source)
    advice = "give the folder of a model, or its name on a hub as ORG/NAME or hf://ORG/NAME@REVISION"
    raise CannotTellError(f"there is no model {excerpt(given, 200)!r}: {advice}")


def _init(
    data: Sequence[Path], validation: Sequence[Path], model: _Model, target: Path | None, names: Names, wanted: Wanted, *, force: bool
) -> None:
    _note("looking at the data and the model…")
    question = InspectQuestion(data=tuple(map(str, data)), validation=tuple(map(str, validation)), model=model.asked)
    seen = ask(question, Inspection)
    facts = seen.model or ModelFacts()
    _require_usable(seen.data, facts, model)
    guess = guess_task(seen.data, facts, wanted)
    folder = volumes_beside(target or Path("fedpipe.yaml"))
    planned = _plan_sites(data, seen.data, guess, folder, names)
    choices = Choices(
        name=_checked(names.run or slug(title_of(data[0].absolute()), "fine-tune"), "--name"),
        source=_pinned(model.source, facts),
        model_note=_model_note(model, facts),
        model=facts,
        model_claim=MODELS if model.folder else None,
        sites=tuple(one.site for one in planned),
    )
    text = write_document(guess, choices)
    task = _require_valid(text, target)
    if target is None:
        typer.echo(text, nl=False)
        _note("nothing was written: without `--output -`, volumes/ gets links to the data and the model")
        return
    links = [link for one in planned for link in one.links] + _model_links(model, folder)
    questions = [one.hold_out.model_copy(update={"objective": objective(task)}) for one in planned if one.hold_out]
    _write(target, text, links, questions, force=force)
    _tell(target, guess, planned)
    _check(target)


def _require_usable(data: Sequence[DataFacts], facts: ModelFacts, model: _Model) -> None:
    """All that keeps the data or the model from being used, at once; of a hub that is not reached, a warning."""
    found = [one.failure.message for one in data if one.failure]
    if facts.failure and facts.failure.reason is not FailureReason.TRANSFER_FAILED:
        found.append(facts.failure.message)
    elif facts.failure or not model.asked:
        why = facts.failure.message if facts.failure else f"{model.source} is not on this machine"
        _note(f"warning: the model was not looked at, so the task is guessed from the data alone: {why}")
    if found:
        raise CannotTellError("\n".join(found))


def _pinned(source: str, facts: ModelFacts) -> str:
    """The source with the commit that its branch names now."""
    return f"{source.partition('@')[0]}@{facts.commit}" if facts.commit else source


def _model_note(model: _Model, facts: ModelFacts) -> str:
    if not facts.architecture:
        return "The base model, which could not be looked at: check that the task below is one for it. Better a commit than a branch."
    template = {True: "with", False: "without"}[facts.has_chat_template]
    what = f"The base model: {facts.architecture} ({facts.kind}, {template} a chat template)."
    if model.folder is None:
        return f"{what} The commit is what {model.source} names now, since a branch may move between two runs."
    where = f"The folder {excerpt(str(model.folder.absolute()), 300)}, by a link in volumes/{MODELS}"
    return f"{what} {where}; on a cluster, put it into a claim {MODELS}."


def _plan_sites(given: Sequence[Path], data: Sequence[DataFacts], guess: Guess, volumes: Path, names: Names) -> list[_PlannedSite]:
    sites = site_names([path.absolute() for path in given], names.sites)
    return [_plan_site(_checked(name, "--site"), one, guess, volumes) for name, one in zip(sites, data, strict=True)]


def _plan_site(name: str, facts: DataFacts, guess: Guess, volumes: Path) -> _PlannedSite:
    claim, columns = f"{name}-data", columns_of_site(guess, facts)
    folder, train = volumes / claim, Path(facts.train)
    origin = f"From {excerpt(str(train.absolute()), 300)!r}"
    if facts.validation is None:
        paths = f"{HELD_OUT}/train.jsonl", f"{HELD_OUT}/validation.jsonl"
        note = f"{origin}, of which a tenth of the rows (at most 1000) was set aside for validation."
        question = HoldOutQuestion(data=facts.train, columns=columns, train=str(folder / paths[0]), validation=str(folder / paths[1]))
        return _PlannedSite(Site(name, claim, paths[0], paths[1], note, columns), (), question)
    validation = Path(facts.validation)
    paths = _path("train", train), _path("validation", validation)
    links = link_of(folder, paths[0], train.absolute()), link_of(folder, paths[1], validation.absolute())
    note = f"{origin} and {excerpt(str(validation.absolute()), 300)!r}, by links."
    return _PlannedSite(Site(name, claim, paths[0], paths[1], note, columns), links)


def _path(part: str, source: Path) -> str:
    return path_in_claim(part, source, is_folder=source.is_dir())


def _checked(name: str, option: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > NAME_MAX - len("-data"):
        advice = "write lower-case letters, digits and dashes; start with a letter, do not end with a dash"
        raise CannotTellError(f"{option} {excerpt(name, 80)!r} is no name of an object: {advice}")
    return name


def _model_links(model: _Model, volumes: Path) -> list[Link]:
    return [Link(volumes / MODELS / model.source.rpartition("/")[2], model.folder.absolute())] if model.folder else []


def _require_valid(text: str, target: Path | None) -> TaskSpec:
    """The task of what is written, which passes `fedpipe validate`: names of columns, for example, may be too long for the API."""
    found = read_documents(text, str(target or "fedpipe.yaml"))
    if found.problems:
        raise CannotTellError("\n".join(map(str, found.problems)))
    return next(one.value.spec.task for one in found.objects if isinstance(one.value, FederatedFineTune))


def _write(target: Path, text: str, links: Sequence[Link], questions: Sequence[HoldOutQuestion], *, force: bool) -> None:
    """Write what is held out, which may fail, then the links, and the YAML last: where it is, the rest is, too, else nothing is."""
    files = [Path(path) for question in questions for path in (question.train, question.validation)]
    wanted = [link for link in links if not _is_made(link)]
    for path in [*(link.path for link in wanted), *files]:
        _require_free(path, force=force, is_ours=path in files or path.is_symlink())
    with removed_if_it_fails([*(link.path for link in wanted), *files, target]):
        for question in questions:
            _hold_out(question)
        for link in wanted:
            _make_link(link)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _hold_out(question: HoldOutQuestion) -> None:
    Path(question.train).parent.mkdir(parents=True, exist_ok=True)
    held = ask(question, HeldOut)
    if held.failure:
        raise CannotTellError(held.failure.message)
    skipped = f", {held.skipped_rows} cannot be read" if held.skipped_rows else ""
    _note(f"{question.train}: {held.train_rows} rows; {held.validation_rows} others for validation beside it{skipped}")


def _require_free(path: Path, *, force: bool, is_ours: bool) -> None:
    if (path.is_symlink() or path.exists()) and not (force and is_ours):
        advice = "overwrite it with --force" if is_ours else "it is no link, so it is kept: move it away"
        raise CannotTellError(f"{path} is there already: {advice}, or name another --output in another folder")


def _is_made(link: Link) -> bool:
    return link.path.is_symlink() and link.path.readlink() == link.target


def _make_link(link: Link) -> None:
    link.path.parent.mkdir(parents=True, exist_ok=True)
    link.path.unlink(missing_ok=True)
    link.path.symlink_to(link.target)


def _tell(target: Path, guess: Guess, planned: Sequence[_PlannedSite]) -> None:
    typer.echo(f"{target}: a {guess.fields['type']} run of {', '.join(one.site.name for one in planned)}: {guess.why}.")
    for one in guess.instead:
        typer.echo(f"  or: {one}")


def _check(target: Path) -> None:
    """Read the first rows by the objects that were written, as a run would, and say what was found and what comes next.

    Raises:
        typer.Exit: a run could not begin.
    """
    from fedpipe_operator.cli.check_data import Where, check_first_rows  # noqa: PLC0415 - what is refused before needs none of its imports

    objects, problems = read([target])
    if problems:
        raise CannotTellError("\n".join(map(str, problems)))
    file = shlex.quote(str(target))
    next_ = f"fedpipe validate {file} --data, then fedpipe run {file}"
    _note("reading the first rows as a run does…")
    try:
        is_good = check_first_rows(objects, Where(volumes_beside(target)))
    except UserError as error:
        _note(f"warning: the data were not read as a run reads them: {error.reason}: {error.message}")
        is_good = True
    if not is_good:
        typer.echo(f"next: correct this; after a change of the data, give the same command with --force. Then {next_}")
        raise typer.Exit(_INVALID)
    typer.echo(f"next: {next_}")

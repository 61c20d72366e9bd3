"""Reads the YAML files that are passed to a command."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Final

import typer

from fedpipe_operator.api import EdgeSite, FederatedFineTune
from fedpipe_operator.api.checks import check_objects, matches
from fedpipe_operator.api.documents import Problem
from fedpipe_operator.api.parse import ParsedObject, read_documents
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.consent import left_out, missing_for_rule_of, missing_sites
from fedpipe_operator.rounds.model_claims import private_claims

_ENDS: Final = (".yaml", ".yml")


@dataclass(frozen=True)
class Objects:
    """The objects of the files, in the order of the files."""

    sites: list[EdgeSite]
    runs: list[FederatedFineTune]


def load(paths: Sequence[Path]) -> Objects:
    """The objects of these files and folders. If there is a problem, print all problems and exit with status 2."""
    objects, problems = read(paths)
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems:
        raise typer.Exit(2)
    return objects


def read(paths: Sequence[Path]) -> tuple[Objects, list[Problem]]:
    """The objects of these files and folders (of a folder: its *.yaml and *.yml files), and every problem in them."""
    found: list[ParsedObject] = []
    problems: list[Problem] = []
    for path in paths:
        for file in _files(path):
            text = _text(file)
            if isinstance(text, Problem):
                problems.append(text)
                continue
            result = read_documents(text, str(file))
            found.extend(result.objects)
            problems.extend(result.problems)
    values = [entry.value for entry in found]
    between = check_objects(values, are_all=not problems)
    problems.extend(found[index].document.problem(where, message) for index, where, message in between)
    problems.extend(_denied_runs(found) if not problems else ())
    return _split_by_kind(values), sorted(problems, key=attrgetter("position"))


def volumes_beside(path: Path) -> Path:
    """The default folder of the volumes: `volumes/` beside the YAML."""
    return (path if path.is_dir() else path.parent) / "volumes"


def _denied_runs(found: Sequence[ParsedObject]) -> list[Problem]:
    """Runs of too few sites, by the sites' policies or for the aggregation's rule. Without any site here, they may be elsewhere."""
    sites = [entry.value for entry in found if isinstance(entry.value, EdgeSite)]
    problems = []
    for entry in found:
        if isinstance(entry.value, FederatedFineTune):
            private = private_claims(sites, entry.value.metadata.namespace)
            run = Run(entry.value, tuple(site for site in sites if matches(entry.value, site)), private_claims=private)
            without = left_out(run)
            message = missing_sites(run, without) or (missing_for_rule_of(run, without) if run.sites else "")
            problems += [entry.document.problem(("spec", "sites"), message)] if message else []
    return problems


def _split_by_kind(values: Iterable[EdgeSite | FederatedFineTune]) -> Objects:
    objects = Objects([], [])
    for value in values:
        if isinstance(value, EdgeSite):
            objects.sites.append(value)
        else:
            objects.runs.append(value)
    return objects


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDS and not file.is_dir()) or [path]


def _text(file: Path) -> str | Problem:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _unreadable(file, "no such file: correct the path")
    except IsADirectoryError:
        return _unreadable(file, "this folder has no *.yaml or *.yml file: name the file")
    except UnicodeDecodeError:
        return _unreadable(file, "not a text file in UTF-8: save it as UTF-8")
    except OSError as error:
        return _unreadable(file, f"cannot be read ({error.strerror}): check its path and permissions")


def _unreadable(file: Path, message: str) -> Problem:
    return Problem(str(file), 1, 0, "", "", message)

"""The policy file of a data volume, `fedpipe-policy.yaml`: the data owner's own word, which no edit of an `EdgeSite` can loosen.

A file that cannot be read, or does not say clearly what it allows, allows nothing. Messages quote nothing of it but names of known fields.
"""

import json
import os
from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from fedpipe_trainer.contract import POLICY_FILE, DataPolicy, FailureReason, RunSelector, stricter
from fedpipe_trainer.errors import TaskFailed

_MISNAMED: Final = "fedpipe-policy.yml"
"""The other usual end of the name: its owner believes that it holds."""
_LARGEST: Final = 2**20
"""Bytes; MAX_POLICY_LABELS names of usual length take less."""


class _UnusableError(Exception):
    """The file cannot be used; the message gives the reason."""


class _Loader(yaml.SafeLoader):
    """Without aliases, which can make a small file expand without bounds, and without duplicate keys, of which the last would win."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs have no type for it
            raise _UnusableError(f"it has an alias in line {event.start_mark.line + 1}: write the value again")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 -- PyYAML's own signature
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            raise _UnusableError(f"two fields of the same name follow line {node.start_mark.line + 1}: remove one of them")
        return found


def policy_of_files(paths: Iterable[str]) -> DataPolicy | None:
    """The policy of the volume that holds these data files; None if it has none.

    It is looked for in every folder above the files, whose last one within a pod is the volume's root. If there are several, the
    stricter counts.

    Raises:
        TaskFailed: PolicyDenied, a policy file cannot be used.
    """
    found = [_read(file) for file in policy_files(paths)]
    return reduce(stricter, found) if found else None


def policy_files(paths: Iterable[str]) -> list[Path]:
    """The policy files that count for these data, unread; among them those with another end of their name, which cannot be used."""
    # Data may be a folder, which can have a policy of its own. Of a link, the policy where it leads counts, too.
    places = {place for path in paths for place in (Path(path).absolute(), Path(os.path.realpath(path)))}
    folders = {folder for place in places for folder in (place, *place.parents)}
    return [file for folder in sorted(folders) for file in (folder / POLICY_FILE, folder / _MISNAMED) if _exists(file)]


def _exists(path: Path) -> bool:
    """Whether there is anything of this name, also a link to nothing."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it says what is wrong
    return True


def _read(path: Path) -> DataPolicy:
    try:
        return _parse(_text(path))
    except _UnusableError as error:
        message = f"the policy file {path} cannot be used, so that every task at this site is refused: {error}"
        raise TaskFailed(FailureReason.POLICY_DENIED, message) from None


def _text(path: Path) -> str:
    if path.name != POLICY_FILE:
        raise _UnusableError(f"its name has another end: rename it to {POLICY_FILE}")
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for without end
        raise _UnusableError("it cannot be read (it is a pipe or a device): remove it")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise _UnusableError(f"it cannot be read ({error.strerror}): correct its permissions, or remove it") from None
    if len(content) > _LARGEST:
        raise _UnusableError(f"it is larger than {_LARGEST} bytes: is it another file?")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _UnusableError("it is not UTF-8: save it as UTF-8") from None


def _parse(text: str) -> DataPolicy:
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 -- a safe loader
        encoded = json.dumps(document, allow_nan=False)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _UnusableError(f"it is not YAML{f', in line {mark.line + 1}' if mark else ''}: correct it") from None
    except RecursionError:
        raise _UnusableError("it is nested too deeply") from None
    except (TypeError, ValueError):
        raise _UnusableError("it has a value that is no text, number, list or mapping: put dates and the like in quotes") from None
    if not isinstance(document, dict):
        raise _UnusableError("it holds no mapping: write the fields of spec.policy of an EdgeSite, or {} for the defaults")
    if empty := next(_empty_fields(document), None):
        raise _UnusableError(f"{empty} has no value, which may mean all or nothing: remove it, or write []")
    try:
        return DataPolicy.model_validate_json(encoded, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False, include_context=False)
        raise _UnusableError("; ".join(dict.fromkeys(_problem(one["loc"], one["type"]) for one in details))) from None


def _empty_fields(value: object, path: tuple[str | int, ...] = ()) -> Iterator[str]:
    """The fields without a value: some would mean everything."""
    if value is None:
        yield _known(path)
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield from _empty_fields(inner, (*path, key))


def _problem(path: tuple[str | int, ...], kind: str) -> str:
    if kind == "extra_forbidden":
        return (
            f"{_known(path)} is unknown: the fields are {', '.join(_aliases(DataPolicy))}, and of runs {', '.join(_aliases(RunSelector))}"
        )
    return f"{_known(path)} is not valid ({kind.replace('_', ' ')}): see spec.policy in the CRD of EdgeSite"


def _known(path: tuple[str | int, ...]) -> str:
    """A path, of whose names only those of fields are told: others are what the file says."""
    names = {*_aliases(DataPolicy), *_aliases(RunSelector)}
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path if isinstance(part, int) or part in names]
    return "".join(parts).removeprefix(".") or "a field"


def _aliases(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]

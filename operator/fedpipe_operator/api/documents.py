"""YAML text to plain values that still know their line: the first step of `parse`, and where a problem is put into words.

Scalars are read as the Kubernetes API server reads them, not as PyYAML would: `2e-4` is a number, `1:30` and dates are text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import yaml

Path = Sequence[str | int]

_SCALARS: Final = (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", list("yYnNtTfFoO")),
    ("int", r"^[-+]?(0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """A safe loader with its own table of plain scalars."""

    yaml_implicit_resolvers = {}


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it stands, and a sentence that says what it is and what to do."""

    file: str
    line: int
    document: int
    """From 1; 0 when it is about the file."""
    object: str
    """Kind and name as far as they are known."""
    path: str
    """Within the document, as `spec.planning.bits[1]`."""
    message: str

    def __str__(self) -> str:
        """The line that a user reads, its beginning as editors understand it."""
        place = ", ".join(part for part in (f"document {self.document}" if self.document else "", self.object) if part)
        return ": ".join(part for part in (f"{self.file}:{self.line}", place, self.path, self.message) if part)

    @property
    def position(self) -> tuple[str, int, int]:
        """By which problems are sorted."""
        return self.file, self.document, self.line


@dataclass(frozen=True)
class Document:
    """One document of a file: its value, and the node tree that knows the lines."""

    file: str
    number: int
    value: Any
    node: yaml.Node

    @property
    def title(self) -> str:
        """Kind and name, as far as the document has them."""
        value = self.value if isinstance(self.value, dict) else {}
        metadata = value.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return " ".join(str(word) for word in (value.get("kind"), name) if word)

    def problem(self, path: Path, message: str) -> Problem:
        """A problem at `path` in this document."""
        return Problem(self.file, _line(self.node, path), self.number, self.title, dotted(path), message)


def dotted(path: Path) -> str:
    """A path as users write it: `spec.planning.bits[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def read_yaml(text: str, file: str) -> tuple[list[Document], list[Problem]]:
    """Every document of a YAML text that is not empty, and what is wrong with the YAML itself.

    Broken YAML ends the reading: where the next document begins is then anyone's guess.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = cast("yaml.Node", loader.get_node())  # never None after check_node
            number = len(documents) + 1
            problems.extend(_repeated_keys(node, file, number))
            documents.append(Document(file, number, loader.construct_document(node), node))
    except yaml.YAMLError as error:
        problems.append(_broken(error, file, len(documents) + 1))
    return [document for document in documents if document.value is not None], problems


def _broken(error: yaml.YAMLError, file: str, number: int) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = " ".join(str(part) for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part) or str(error)
    return Problem(file, mark.line + 1 if mark else 1, number, "", "", f"this is no YAML ({what}): mend the line, or the one above it")


def _repeated_keys(node: yaml.Node, file: str, number: int) -> Iterator[Problem]:
    """PyYAML keeps the last of two equal keys without a word; the API server refuses them, so do we."""
    children = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else node.value
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        for position, (key, _) in enumerate(node.value):
            if key.value in names[:position]:
                message = f"the field {key.value!r} is written twice: remove one of them"
                yield Problem(file, key.start_mark.line + 1, number, "", "", message)
    for child in children if isinstance(node, yaml.CollectionNode) else ():
        yield from _repeated_keys(child, file, number)


def _line(node: yaml.Node, path: Path) -> int:
    """The line, from 1, of the deepest part of `path` that the document has."""
    line = node.start_mark.line + 1
    for part in path:
        entries = _entries(node)
        if part not in entries:
            break
        line, node = entries[part]
    return int(line)


def _entries(node: yaml.Node) -> dict[str | int, tuple[int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return {key.value: (key.start_mark.line + 1, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    return {index: (child.start_mark.line + 1, child) for index, child in enumerate(children)}

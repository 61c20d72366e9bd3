"""YAML text to plain values with their line numbers, the first step of `parse`; and `Problem`, what is reported to the user.

Scalars are read as the Kubernetes API server reads them, not as PyYAML does: `2e-4` is a number, `1:30` and dates are strings.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import yaml

from fedpipe_operator.formatting import excerpt

LONGEST_PROBLEM: Final = 4096
"""Characters of a problem, as it is shown."""

FieldPath = Sequence[str | int]
"""Names of fields and indices of list entries, from the document's root."""

FieldProblem = tuple[FieldPath, str]
"""The path of a field, and the message: what is wrong and what to write."""

_SCALARS: Final = (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", list("yYnNtTfFoO")),
    ("int", r"^[-+]?(0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """A safe loader with its own resolvers for plain scalars."""

    yaml_implicit_resolvers = {}


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


@dataclass(frozen=True)
class Problem:
    """One problem in a file: its location, and a message that says what is wrong and what to do."""

    file: str
    line: int
    document: int
    """Number of the document in the file, from 1; 0 if the problem concerns the file."""
    object: str
    """Kind and name, as far as known."""
    path: str
    """Path of the field within the document, such as `spec.planning.bits[1]`."""
    message: str

    def __str__(self) -> str:
        """One line for the user; it begins with `file:line`, which editors recognise."""
        location = ", ".join(part for part in (f"document {self.document}" if self.document else "", self.object) if part)
        return excerpt(": ".join(part for part in (f"{self.file}:{self.line}", location, self.path, self.message) if part), LONGEST_PROBLEM)

    @property
    def position(self) -> tuple[str, int, int]:
        """The sort key of problems."""
        return self.file, self.document, self.line


@dataclass(frozen=True)
class Document:
    """One document of a file: its value, and the YAML nodes, which hold the line numbers."""

    file: str
    number: int
    value: Any
    node: yaml.Node

    @property
    def title(self) -> str:
        """Kind and name, as far as the document has them, such as `EdgeSite north`."""
        value = self.value if isinstance(self.value, dict) else {}
        metadata = value.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return " ".join(str(word) for word in (value.get("kind"), name) if word)

    def problem(self, path: FieldPath, message: str) -> Problem:
        """A problem at `path` in this document."""
        return Problem(self.file, _line_of(self.node, path), self.number, self.title, format_path(path), message)


def format_path(path: FieldPath) -> str:
    """A path as users write it, such as `spec.planning.bits[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def read_yaml(text: str, file: str) -> tuple[list[Document], list[Problem]]:
    """The documents of a YAML text that are not empty, and the problems of the YAML syntax.

    Reading stops at the first syntax error, since the start of the next document cannot be determined.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = cast("yaml.Node", loader.get_node())  # never None after check_node
            number = len(documents) + 1
            problems.extend(_duplicate_keys(node, file, number))
            documents.append(Document(file, number, loader.construct_document(node), node))
    except yaml.YAMLError as error:
        problems.append(_syntax_problem(error, file, len(documents) + 1))
    return [document for document in documents if document.value is not None], problems


def _syntax_problem(error: yaml.YAMLError, file: str, number: int) -> Problem:
    mark = getattr(error, "problem_mark", None)
    cause = " ".join(str(part) for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part) or str(error)
    return Problem(file, mark.line + 1 if mark else 1, number, "", "", f"invalid YAML ({cause}): correct this line or the one above it")


def _duplicate_keys(node: yaml.Node, file: str, number: int) -> Iterator[Problem]:
    """PyYAML silently keeps the last of two equal keys; the API server refuses them, and so does this check."""
    children = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else node.value
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        for position, (key, _) in enumerate(node.value):
            if key.value in names[:position]:
                message = f"duplicate field {key.value!r}: remove one of the two"
                yield Problem(file, key.start_mark.line + 1, number, "", "", message)
    for child in children if isinstance(node, yaml.CollectionNode) else ():
        yield from _duplicate_keys(child, file, number)


def _line_of(node: yaml.Node, path: FieldPath) -> int:
    """The line, from 1, of the longest prefix of `path` that exists in the document."""
    line = node.start_mark.line + 1
    for part in path:
        children = _children(node)
        if part not in children:
            break
        line, node = children[part]
    return int(line)


def _children(node: yaml.Node) -> dict[str | int, tuple[int, yaml.Node]]:
    """Line and node of each child, by its key or index."""
    """Line and node of each child, by its key or index."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: (key.start_mark.line + 1, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    return {index: (child.start_mark.line + 1, child) for index, child in enumerate(children)}

"""Write the tables of values into the chart's README from the comments of its values.yaml: `python tools/chart_readme.py`.

The comment above a value, or behind it, is its description; the tables end the README, below a marker. `## ` begins a section. A value
without a comment is described by the one above it that has one, and is part of its default.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

CHART: Final = Path(__file__).parents[1] / "charts" / "fedpipe"
MARKER: Final = "<!-- Below this line, tools/chart_readme.py writes what the comments of values.yaml say. -->"
_SECTION: Final = "## "
_TYPES: Final = {str: "string", bool: "boolean", int: "integer", float: "number", list: "list", dict: "object"}
_BEHIND: Final = re.compile(r"\s#\s(?P<text>.*)$")
_EXAMPLE: Final = "  "
"""Begins a line of a comment that is an example, as it is written."""


class Row(NamedTuple):
    """A value of the chart."""

    section: str
    key: str
    """Its path, with dots."""
    default: Any
    description: tuple[str, ...]
    """The lines of its comment."""


def rows(text: str) -> list[Row]:
    """The values of this values.yaml that have a comment, in its order.

    Raises:
        ValueError: a value has no comment, and nor has what it is part of; the message names it.
    """
    root = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 -- the file's form
    return list(_rows_of(root, text.splitlines(), ""))


def _rows_of(node: yaml.MappingNode, lines: Sequence[str], above: str) -> Iterator[Row]:
    for name, value in node.value:
        line = name.start_mark.line
        key, comment, nested = f"{above}{name.value}", _comment(lines, line), []
        if (
            isinstance(value, yaml.MappingNode)
            and not value.flow_style
            and any(_comment(lines, one.start_mark.line) for one, _ in value.value)
        ):
            nested = list(_rows_of(value, lines, f"{key}."))
        if not comment and not nested:
            raise ValueError(f"values.yaml, line {line + 1}: {key} has no comment, and nor has what it is part of")
        if comment:
            yield Row(_section(lines, line), key, None if nested else _plain(value), comment)
        yield from nested


def _plain(node: yaml.Node) -> Any:  # noqa: ANN401 -- whatever the file holds
    return yaml.SafeLoader("").construct_document(node)


def _comment(lines: Sequence[str], at: int) -> tuple[str, ...]:
    """The comment lines directly above a line, and what stands behind its value; without the signs of a comment."""
    above = list(takewhile(lambda one: one.lstrip().startswith("# "), reversed(lines[:at])))[::-1]
    behind = _BEHIND.search(lines[at])
    return (*(one.lstrip().removeprefix("# ") for one in above), *([behind["text"]] if behind else []))


def _section(lines: Sequence[str], at: int) -> str:
    return next((one.removeprefix(_SECTION) for one in reversed(lines[:at]) if one.startswith(_SECTION)), "")


def tables(found: Sequence[Row]) -> str:
    """The rows as Markdown, a table for each section."""
    parts: list[str] = []
    for section in dict.fromkeys(row.section for row in found):
        head = f"### {section}\n\n| key | type | default | description |\n|---|---|---|---|\n"
        parts.append(head + "".join(_line(row) for row in found if row.section == section))
    return "\n".join(parts)


def _line(row: Row) -> str:
    kind = "object" if row.default is None else _TYPES[type(row.default)]
    default = "" if row.default is None else f"`{_flow(row.default)}`"
    return f"| `{row.key}` | {kind} | {default} | {_markdown(row.description)} |\n"


def _flow(value: Any) -> str:  # noqa: ANN401 -- whatever the file holds
    """A value in one line, as YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip().removesuffix("...").strip()
    return '""' if text == "''" else text.replace("|", "\\|")


def _markdown(lines: Sequence[str]) -> str:
    """A comment as a table's cell: its examples, indented lines, as code."""
    text = ""
    for line in lines:
        part = f"<br>`{line.strip()}`" if line.startswith(_EXAMPLE) else f" {line.strip()}"
        text += part.replace("|", "\\|")
    return text.strip()


def readme(before: str, values: str) -> str:
    """The README with new tables below its marker.

    Raises:
        ValueError: it has no marker; or as `rows`.
    """
    head, marker, _ = before.partition(MARKER)
    if not marker:
        raise ValueError(f"charts/fedpipe/README.md has no line {MARKER!r}: add it where the tables belong")
    return f"{head}{MARKER}\n\n{tables(rows(values))}"


def main() -> None:
    """Rewrite the chart's README."""
    file = CHART / "README.md"
    file.write_text(readme(file.read_text(encoding="utf-8"), (CHART / "values.yaml").read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

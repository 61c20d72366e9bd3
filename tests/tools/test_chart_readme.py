"""The chart's README says of every value what values.yaml says."""

from collections.abc import Iterator
from typing import Any

import pytest
from chart_readme import CHART, MARKER, Row, readme, rows, tables
from charts import values

README = (CHART / "README.md").read_text()
VALUES = (CHART / "values.yaml").read_text()


def test_the_readme_is_what_the_tool_writes() -> None:
    assert readme(README, VALUES) == README, "python tools/chart_readme.py writes it anew"


def test_every_value_is_in_the_readme_or_part_of_one_that_is() -> None:
    shown = {row.key: row.default for row in rows(VALUES)}

    assert [path for path, value in _leaves(values()) if _shown_default(path, shown) != value] == []


def test_every_section_has_a_table() -> None:
    titles = [line.removeprefix("## ") for line in VALUES.splitlines() if line.startswith("## ")]

    assert [title for title in titles if f"\n### {title}\n\n| key |" not in README] == []


def test_comments_above_and_behind_a_value_describe_it() -> None:
    text = '## Port\n# Where it listens:\n#   --port 80\n# or | not.\nport: 80\nname: "" # Its name.\n'

    assert rows(text) == [
        Row("Port", "port", 80, ("Where it listens:", "  --port 80", "or | not.")),
        Row("Port", "name", "", ("Its name.",)),
    ]
    assert tables(rows(text)).splitlines()[-2:] == [
        "| `port` | integer | `80` | Where it listens:<br>`--port 80` or \\| not. |",
        '| `name` | string | `""` | Its name. |',
    ]


def test_a_value_without_comments_below_is_shown_as_a_whole_and_one_with_them_in_parts() -> None:
    whole = "# All of it.\nprobe:\n  period: 1\n  timeout: 2\n"
    parts = "# All of it.\nprobe:\n  # Seconds.\n  period: 1\n"

    assert rows(whole) == [Row("", "probe", {"period": 1, "timeout": 2}, ("All of it.",))]
    assert rows(parts) == [Row("", "probe", None, ("All of it.",)), Row("", "probe.period", 1, ("Seconds.",))]


def test_a_value_without_a_description_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"values.yaml, line 4: probe.timeout has no comment, and nor has what it is part of"):
        rows("probe:\n  # Seconds.\n  period: 1\n  timeout: 2\n")


def test_a_readme_without_the_marker_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no line"):
        readme(README.replace(MARKER, ""), VALUES)


def _leaves(found: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def _shown_default(path: str, shown: dict[str, Any]) -> object:
    """The default that the row of this value shows, or that of the value that it is part of."""
    key, inner = path, []
    while key not in shown:
        key, _, name = key.rpartition(".")
        inner.insert(0, name)
    found = shown[key]
    for name in inner:
        found = (found or {}).get(name, "not shown")
    return found

"""The pictures in the docs are drawn from the stored answers, and show every panel."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from grafana_foundation_sdk.models import units
from observability import pictures
from observability.answers import Series
from observability.dashboards import DASHBOARDS
from observability.drawing import draw
from observability.formats import shown
from observability.model import Dashboard, Kind, Panel, Query, Row, Threshold


def texts(svg: str) -> list[str]:
    """The texts of a picture."""
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314 -- our own


def one_panel(kind: Kind, *queries: Query, unit: str = units.Short, may_be_empty: str = "") -> Dashboard:
    panel = Panel("It", "What it shows.", unit, queries, kind, thresholds=(Threshold(3, "red"),), may_be_empty=may_be_empty)
    return Dashboard("one", "One", "", (), (Row("Row", (panel,)),))


def test_the_pictures_are_drawn_from_the_stored_answers() -> None:
    for file, content in pictures.pictures().items():
        assert file.read_text(encoding="utf-8") == content, "run python tools/dashboards.py draw"


@pytest.mark.parametrize("one", DASHBOARDS, ids=lambda one: one.uid)
def test_a_picture_shows_every_panel_by_its_title(one: Dashboard) -> None:
    shown_texts = texts(pictures.pictures()[pictures.FOLDER / f"{one.uid}.svg"])

    assert [panel.title for panel in one.panels() if panel.title not in shown_texts] == []


SVG = "{http://www.w3.org/2000/svg}"
LETTER = 6.0
"""The width of a letter of size 11 in the fonts of browsers, on average."""


def outside(panel: ET.Element) -> list[str]:
    """The texts of a panel that reach beyond its frame."""
    frame = panel.find(f"{SVG}rect")
    found = []
    for text in panel.iter(f"{SVG}text") if frame is not None else ():
        length = len(text.text or "") * LETTER * float(text.get("font-size", "11")) / 11
        share = {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor", "start")]
        left = float(text.get("x", "0")) - length * share
        if frame is not None and (left < 0 or left + length > float(frame.get("width", "0")) + 4):
            found.append(text.text or "")
    return found


@pytest.mark.parametrize("one", DASHBOARDS, ids=lambda one: one.uid)
def test_no_text_of_a_picture_reaches_into_another_panel(one: Dashboard) -> None:
    picture = ET.fromstring(pictures.pictures()[pictures.FOLDER / f"{one.uid}.svg"])  # noqa: S314 -- our own

    assert [text for panel in picture.iter(f"{SVG}g") for text in outside(panel)] == []


def test_names_that_are_too_long_for_a_panel_are_cut_and_a_long_reason_has_several_lines() -> None:
    series = [Series({"site": "a-site-" * 40}, ((0.0, 1.5),))]
    bars, lines, table = (draw(one_panel(kind, Query("x", "{{site}}")), {"It": [series]}) for kind in (Kind.BARS, Kind.LINES, Kind.TABLE))
    empty = draw(one_panel(Kind.BARS, Query("x", "x"), may_be_empty="no reason " * 30), {"It": [[]]})

    for picture in (bars, lines, table, empty):
        assert [text for panel in ET.fromstring(picture).iter(f"{SVG}g") for text in outside(panel)] == []  # noqa: S314 -- our own
    assert all("a-site-a-site" in picture and "…" in picture for picture in (bars, lines, table))
    assert len(texts(empty)) > 4


def test_of_a_level_line_only_the_ends_are_stored(tmp_path: Path) -> None:
    values = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    series = Series({"site": "a"}, tuple((float(at), value) for at, value in enumerate(values)))

    pictures.store({"fedpipe-run": {"It": [[series]]}}, tmp_path / "answers.json")

    assert json.loads((tmp_path / "answers.json").read_text()) == {
        "fedpipe-run": {"It": [[[{"site": "a"}, [[0, 1.0], [3, 1.0], [4, 2.0], [6, 2.0]]]]]}
    }


def test_lines_have_the_names_of_their_legend_and_their_last_value() -> None:
    series = [Series({"site": name}, ((0.0, 1.0), (10.0, value))) for name, value in (("south", 2.0), ("north", 4.0))]

    svg = draw(one_panel(Kind.LINES, Query("x", "{{site}} <up>")), {"It": [series]})

    assert [text for text in texts(svg) if "<up>" in text] == ["north <up>: 4", "south <up>: 2"]
    assert svg.count("<polyline") == 3, "two curves and a threshold"


def test_a_value_has_the_colour_of_its_threshold() -> None:
    low, high = (draw(one_panel(Kind.VALUES, Query("x", "n")), {"It": [[Series({}, ((0.0, value),))]]}) for value in (2.0, 3.0))

    assert ('fill="red"' in low, 'fill="red"' in high) == (False, True)


def test_a_table_has_a_row_for_each_set_of_labels_and_a_column_for_each_query() -> None:
    answers = [[Series({"site": site}, ((0.0, value),)) for site in sites] for sites, value in ((("a", "b"), 4.0), (("b",), 8.0))]

    found = texts(draw(one_panel(Kind.TABLE, Query("x", "bits"), Query("y", "rank")), {"It": answers}))

    assert found[2:] == ["site", "bits", "rank", "a", "4", "", "b", "4", "8"]


def test_bars_have_names_and_values_in_their_unit() -> None:
    found = texts(draw(one_panel(Kind.BARS, Query("x", "{{site}}"), unit=units.Seconds), {"It": [[Series({"site": "a"}, ((0.0, 1.5),))]]}))

    assert found[2:] == ["a", "1.5 s"]


def test_a_panel_without_data_says_why_that_may_be() -> None:
    dashboard = one_panel(Kind.LINES, Query("x", "x"), may_be_empty="nothing was aggregated")

    assert texts(draw(dashboard, {"It": [[]]}))[2:] == ["No data: nothing was aggregated"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1536.0, units.BytesIEC, "1.5 KiB"),
        (1001.5 * 2**20, units.BytesIEC, "1002 MiB"),
        (0.25, units.PercentUnit, "25 %"),
        (12.0, units.Seconds, "12 s"),
        (0.123456, units.Short, "0.123"),
        (3e12, units.Short, "3e+12"),
        (5.0, units.Joule, "5 J"),
    ],
)
def test_a_value_is_shown_in_its_unit(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text

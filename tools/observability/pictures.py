"""The stored answers of a Prometheus that watched a real run, and the pictures in the docs that are drawn from them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from observability.answers import Series, Source
from observability.dashboards import DASHBOARDS
from observability.drawing import Answers, draw

FOLDER: Final = Path(__file__).parents[2] / "docs" / "dashboards"
ANSWERS: Final = FOLDER / "answers.json"
_DIGITS: Final = 4


def store(answers: Mapping[str, Mapping[str, Answers]], file: Path = ANSWERS) -> None:
    """Store the answers by dashboard and panel: for each query a list of labels and points."""
    plain = {
        uid: {title: [[_plain(series) for series in query] for query in queries] for title, queries in panels.items()}
        for uid, panels in answers.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plain, separators=(",", ":"), sort_keys=True).replace("]]],", "]]],\n") + "\n", encoding="utf-8")


def pictures(file: Path = ANSWERS) -> dict[Path, str]:
    """Each picture's file and its content, from the stored answers."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    return {FOLDER / f"{one.uid}.svg": draw(one, _answers(stored[one.uid])) for one in DASHBOARDS}


def answers_of(uid: str, source: Source) -> dict[str, Answers]:
    """What a Prometheus answers now to the panels of this dashboard, by their titles."""
    return {panel.title: source.answers(panel) for one in DASHBOARDS if one.uid == uid for panel in one.panels()}


def snapshot(source: Source) -> dict[str, str]:
    """The picture of each dashboard as it is now, by the dashboard's uid."""
    return {one.uid: draw(one, answers_of(one.uid, source)) for one in DASHBOARDS}


def _plain(series: Series) -> list[Any]:
    points = [[round(at), float(f"{value:.{_DIGITS}g}")] for at, value in series.points]
    return [dict(series.labels), [point for index, point in enumerate(points) if _shows(points, index)]]


def _shows(points: list[list[float]], index: int) -> bool:
    """Whether a point differs from one of its neighbours, or is an end: the others lie on a level line."""
    return index in (0, len(points) - 1) or len({points[at][1] for at in (index - 1, index, index + 1)}) > 1


def _answers(stored: Mapping[str, Any]) -> dict[str, Answers]:
    return {
        title: [[Series(labels, tuple((at, value) for at, value in points)) for labels, points in query] for query in queries]
        for title, queries in stored.items()
    }

"""What `fedpipe logs --follow` reads and shows: each line once, whatever is cut, replaced or written within one second."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_operator.cli.followed_log import (
    LEFT_OUT,
    Line,
    Position,
    about_run,
    has_ended,
    is_operator,
    is_readable,
    pause_seconds,
    read_on,
)

Plain = dict[str, Any]

SECOND = "2026-01-01T00:00:00Z"


def raw(number: int, *, second: int = 0) -> str:
    return f"2026-01-01T00:00:{second:02}.{number:09}Z line {number}\n"


def log_since(log: list[tuple[int, str]], at: Position) -> str:
    """What the kubelet answers: the lines of this second and later ones."""
    return "".join(line for second, line in log if f"2026-01-01T00:00:{second:02}Z" >= at.since)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=8))
def test_each_line_is_shown_once_in_its_order_whenever_the_log_is_read(steps: list[tuple[int, int]]) -> None:
    """A step: so many seconds pass, so many lines are written, and the log is read."""
    log: list[tuple[int, str]] = []
    shown: list[Line] = []
    at, second = Position(), 0
    for passed, written in steps:
        second += passed
        log += [(second, raw(len(log) + one, second=second)) for one in range(written)]
        new, at = read_on(log_since(log, at), at, is_cut=False, is_whole=False)
        shown += new

    assert [line.text for line in shown] == [f"line {number}" for number in range(len(log))]


def test_a_line_has_the_time_at_which_it_was_written() -> None:
    (line,), at = read_on(raw(7), Position(), is_cut=False, is_whole=False)

    assert line == Line("2026-01-01T00:00:00.000000007Z", "line 7")
    assert at == Position(SECOND, raw(7).rstrip("\n"))


def test_a_time_in_a_node_s_own_zone_is_asked_for_in_that_zone() -> None:
    _, at = read_on("2026-01-01T02:00:00.5+02:00 late\n", Position(), is_cut=False, is_whole=False)

    assert at.since == "2026-01-01T02:00:00+02:00"


def test_the_beginning_of_a_line_waits_for_its_end_unless_nothing_follows() -> None:
    beginning = raw(1) + raw(2)[:-1]

    assert [line.text for line in read_on(beginning, Position(), is_cut=False, is_whole=False)[0]] == ["line 1"]
    assert [line.text for line in read_on(beginning, Position(), is_cut=False, is_whole=True)[0]] == ["line 1", "line 2"]
    assert [line.text for line in read_on(beginning, Position(), is_cut=True, is_whole=True)[0]] == ["line 1"]


def test_the_log_of_a_container_that_was_started_again_is_shown_from_its_beginning() -> None:
    at = Position(SECOND, raw(9).rstrip("\n"))

    assert [line.text for line in read_on(raw(1), at, is_cut=False, is_whole=False)[0]] == ["line 1"]


@pytest.mark.parametrize(
    ("log", "at"),
    [
        (raw(1) + raw(2), Position(SECOND, raw(2).rstrip("\n"))),
        (raw(1) + raw(2), Position(SECOND, raw(9).rstrip("\n"))),
        (raw(1).rstrip("\n"), Position()),
        (raw(1).rstrip("\n"), Position(SECOND)),
    ],
    ids=["nothing new in the limit", "the last line is beyond the limit", "a line as long as the limit", "the same later"],
)
def test_a_second_with_more_than_can_be_read_is_left_behind_and_that_is_told(log: str, at: Position) -> None:
    (line,), then = read_on(log, at, is_cut=True, is_whole=False)

    assert line == Line(SECOND, LEFT_OUT)
    assert then == Position("2026-01-01T00:00:01+00:00")


def test_a_log_that_is_cut_goes_on_where_it_was_cut() -> None:
    lines, at = read_on(raw(1) + raw(2) + raw(3)[:9], Position(), is_cut=True, is_whole=False)

    assert [line.text for line in lines] == ["line 1", "line 2"]
    assert [line.text for line in read_on(raw(1) + raw(2) + raw(3), at, is_cut=False, is_whole=True)[0]] == ["line 3"]


def test_an_empty_log_changes_nothing() -> None:
    at = Position(SECOND, "x")

    assert read_on("", at, is_cut=False, is_whole=False) == ([], at)
    assert read_on("without a time\n", Position(), is_cut=False, is_whole=False)[0] == [Line("", "without a time")]


def a_pod(phase: str, **states: Plain) -> Plain:
    return {"status": {"phase": phase, "containerStatuses": [{"name": name, "state": state} for name, state in states.items()]}}


@pytest.mark.parametrize(
    ("pod", "readable", "ended"),
    [
        ({}, False, False),
        (a_pod("Pending"), False, False),
        (a_pod("Pending", trainer={"waiting": {"reason": "ContainerCreating"}}), False, False),
        (a_pod("Running", trainer={"running": {}}), True, False),
        (a_pod("Running", trainer={"terminated": {}}, sidecar={"running": {}}), True, True),
        (a_pod("Running", trainer={"waiting": {}}, sidecar={"terminated": {}}), False, False),
        (a_pod("Succeeded"), True, True),
        (a_pod("Failed"), True, True),
    ],
    ids=str,
)
def test_a_log_is_read_from_the_start_of_our_container_to_its_end(pod: Plain, readable: bool, ended: bool) -> None:
    assert (is_readable(pod, "trainer"), has_ended(pod, "trainer")) == (readable, ended)


@pytest.mark.parametrize(
    "text",
    [
        '{"message": "planned", "run": "toy", "uid": "uid-1"}',
        "2026-01-01T00:00:00.000Z INFO    planned | namespace=default run=toy uid=uid-1 generation=1",
        "2026-01-01T00:00:00.000Z INFO    planned | in parts | run=toy uid=uid-1",
    ],
)
def test_a_line_of_the_operator_is_about_the_run_whose_uid_it_has(text: str) -> None:
    assert list(about_run([Line("", text)], "uid-1")) == [Line("", text)]
    assert list(about_run([Line("", text.replace("uid-1", "uid-10"))], "uid-1")) == []


@pytest.mark.parametrize(
    "text", ["", "uid-1", '{"message": "uid-1"}', '["uid-1"]', "[" * 100_000, "INFO said uid=uid-1 | run=other uid=uid-2"]
)
def test_another_line_is_not(text: str) -> None:
    assert list(about_run([Line("", text)], "uid-1")) == []


def test_an_operator_of_another_project_is_none_of_ours() -> None:
    assert is_operator({"metadata": {"labels": {"helm.sh/chart": "fedpipe-0.1.0"}}})
    assert not is_operator({"metadata": {"labels": {"helm.sh/chart": "mongodb-1.0.0"}}})
    assert not is_operator({"metadata": {}})


def test_many_logs_are_read_less_often() -> None:
    assert [pause_seconds(logs) for logs in (0, 3, 40, 200)] == [2.0, 2.0, 2.0, 10.0]

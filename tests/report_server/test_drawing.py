"""Pages are drawn by processes of their own: once for what they show, few at a time, and none is kept for ever."""

import sys
import threading
from pathlib import Path

import pytest

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.report_server import drawing as module
from fedpipe_operator.report_server.drawing import Drawer, Launch, Page

SCRIPT = """
import os, sys, time
from pathlib import Path
task = sys.stdin.read()
if task == "fail":
    sys.exit("first\\nStoreDenied: the key pair may not list")
if task == "die":
    os.kill(os.getpid(), 9)
gate = Path(sys.argv[1]).with_name("go")
while task == "wait" and not gate.exists():
    time.sleep(0.01)
Path(sys.argv[1]).write_text(task + " " + os.environ.get("AWS_ACCESS_KEY_ID", "") + os.environ.get("AWS_PROFILE", ""))
print("policy", end="")
"""


class Counted:
    """A drawer of a stand-in for the process, and how often what was drawn for."""

    def __init__(self, folder: Path) -> None:
        self.now, self.prepared, self.folder = 0.0, list[str](), folder
        self.drawer = Drawer(folder, (sys.executable, "-c", SCRIPT), lambda: self.now)

    def page(self, uid: str = "one", version: str = "1", task: str = "draw", *, namespace: str = "", seconds: float = 30.0) -> Page:
        def prepare() -> Launch:
            self.prepared.append(f"{uid} {version}")
            return Launch(task, {"AWS_ACCESS_KEY_ID": f"key of {uid}"})

        return self.drawer.page(namespace or uid, uid, version, prepare, seconds=seconds)

    def let_go(self) -> None:
        (self.folder / "go").touch()
        with self.drawer._ended:
            assert self.drawer._ended.wait_for(lambda: all(one.ended_at is not None for one in self.drawer._drawings.values()), 30)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the operator's own")
    return Counted(tmp_path)


def test_a_page_is_drawn_with_the_key_pair_of_its_run(counted: Counted) -> None:
    page = counted.page()

    assert page.policy == "policy"
    assert page.file.read_text() == "draw key of one"


def test_a_report_is_drawn_once_for_what_it_shows(counted: Counted) -> None:
    for version in ("1", "1", "1", "2", "2"):
        counted.page(version=version)

    assert counted.prepared == ["one 1", "one 2"]


def test_callers_that_ask_at_once_cost_one_drawing(counted: Counted) -> None:
    threads = [threading.Thread(target=counted.page) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert counted.prepared == ["one 1"]


def test_who_cannot_wait_is_told_that_it_is_being_drawn(counted: Counted) -> None:
    with pytest.raises(TransientError, match="ReportBeingDrawn"):
        counted.page(task="wait", seconds=0.0)
    counted.let_go()

    assert counted.page().file.exists()
    assert counted.prepared == ["one 1"]


def test_of_each_namespace_one_report_is_drawn_at_a_time_and_two_in_all(counted: Counted) -> None:
    def start(uid: str, namespace: str) -> str:
        with pytest.raises(TransientError) as refused:
            counted.page(uid, task="wait", namespace=namespace, seconds=0.0)
        return refused.value.message

    first, same, second, third = start("one", "a"), start("two", "a"), start("three", "b"), start("four", "c")
    counted.let_go()

    assert first == second == "the report is being drawn: ask again in some seconds"
    assert same == third == "other reports are being drawn: ask again in some seconds"
    assert sorted(counted.prepared) == ["one 1", "three 1"]


@pytest.mark.parametrize(
    ("task", "message"), [("fail", "StoreDenied: the key pair may not list"), ("die", "probably for want of memory: use fedpipe report")]
)
def test_a_failure_is_told_and_not_tried_again_at_once(counted: Counted, task: str, message: str) -> None:
    for at in (0.0, 29.0, 30.0):
        counted.now = at
        with pytest.raises(TransientError, match=f"ReportNotDrawn: .*{message}"):
            counted.page(task=task)

    assert counted.prepared == ["one 1", "one 1"]


def test_what_keeps_a_drawing_from_beginning_is_told_as_it_is(counted: Counted) -> None:
    def prepare() -> Launch:
        raise UserError("SecretMissing", "create it")

    with pytest.raises(UserError, match="SecretMissing: create it"):
        counted.drawer.page("a", "one", "1", prepare, seconds=30.0)


def test_a_bug_in_what_prepares_it_holds_up_nobody(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _arguments: None)

    def prepare() -> Launch:
        raise RuntimeError("a fault")

    with pytest.raises(TransientError, match="ReportNotDrawn: the operator failed to draw it: its log says why"):
        counted.drawer.page("a", "one", "1", prepare, seconds=30.0)


def test_a_drawing_that_takes_too_long_is_ended(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAWING_SECONDS", 0.2)

    with pytest.raises(TransientError, match="was not drawn within 0 s"):
        counted.page(task="wait")


def test_few_pages_are_kept_those_that_were_read_last(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 2)
    pages = [counted.page(uid) for uid in ("one", "two")]
    counted.page("one")
    counted.page("three")

    assert [page.file.exists() for page in pages] == [True, False]
    assert len(list(counted.folder.iterdir())) == 2


def test_the_page_of_a_run_that_is_gone_is_removed(counted: Counted) -> None:
    page = counted.page()
    counted.drawer.forget("one")

    assert not page.file.exists()


def test_a_page_that_is_drawn_while_its_run_is_deleted_is_not_kept(counted: Counted) -> None:
    with pytest.raises(TransientError, match="ReportBeingDrawn"):
        counted.page(task="wait", seconds=0.0)
    drawing = counted.drawer._drawings["one"]
    counted.drawer.forget("one")
    counted.let_go()
    with counted.drawer._ended:
        assert counted.drawer._ended.wait_for(lambda: drawing.ended_at is not None, 30)

    assert [file.name for file in counted.folder.iterdir()] == ["go"]


def test_a_page_that_is_being_read_stays_whole_when_it_is_replaced(counted: Counted) -> None:
    with counted.page().file.open() as reading:
        counted.page(version="2")

        assert reading.read() == "draw key of one"


def test_without_space_or_memory_there_is_a_message(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module.subprocess, "Popen", fail)

    with pytest.raises(FedPipeError, match="could not be drawn: Cannot allocate memory"):
        counted.page()

"""Debian's Chromium, driven by its ChromeDriver over the W3C WebDriver protocol: plain HTTP, for which no library is needed.

Where neither is installed, a test that needs them is skipped; `FEDPIPE_BROWSER=required`, which `.ci/run` sets once it has installed them,
makes that a failure. `make browser` installs both.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import pytest
from free_ports import free_port

PROGRAMS: Final = ("chromium", "chromedriver")
_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_ELEMENT: Final = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's id in the protocol."""
_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Browser:
    """A window of Chromium. Raises `AssertionError` with the browser's own words."""

    port: int
    session: str

    def open(self, url: str) -> None:
        """Load a page and wait for its scripts."""
        self._post("url", {"url": url})

    def run(self, script: str) -> Any:
        """What a function with this body returns in the page."""
        return self._post("execute/sync", {"script": script, "args": []})

    def texts(self, selector: str) -> list[str]:
        """What a reader sees of the elements that a CSS selector finds."""
        found: list[str] = self.run(f"return [...document.querySelectorAll({json.dumps(selector)})].map(one => one.innerText.trim())")
        return found

    def write(self, selector: str, text: str) -> None:
        """Type into the first element that the selector finds."""
        self._post(f"element/{self._find(selector)}/value", {"text": text})

    def submit(self, selector: str) -> None:
        """Click the button that the selector finds, and wait for the page that this loads."""
        self.run("window.isOld = true")
        self._post(f"element/{self._find(selector)}/click", {})
        end = time.monotonic() + _SECONDS
        while not self.run("return !window.isOld && document.readyState === 'complete'"):
            assert time.monotonic() < end, "no other page was loaded"
            time.sleep(0.05)

    def url(self) -> str:
        """The address of the page."""
        found: str = call(self.port, "GET", f"/session/{self.session}/url")
        return found

    def resize(self, width: int, height: int) -> None:
        """Give the page this many pixels."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def theme(self, name: str) -> None:
        """What the reader prefers: light or dark."""
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._post("goog/cdp/execute", {"cmd": command, "params": parameters})

    def picture(self, file: Path) -> None:
        """A picture of the whole page, below the window too."""
        taken = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))

    def complaints(self) -> list[str]:
        """What the console has had since the last question: errors of scripts, refused sources, failed requests."""
        entries = self._post("se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def _find(self, selector: str) -> str:
        found: str = self._post("element", {"using": "css selector", "value": selector})[_ELEMENT]
        return found

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return call(self.port, "POST", f"/session/{self.session}/{path}", body)


def call(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One command of the protocol; what it answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    value = json.loads(answer.read())["value"]
    connection.close()
    assert answer.status == 200, f"{method} {path}: {value}"
    return value


@contextmanager
def opened_browser(folder: Path) -> Iterator[Browser]:
    """A new Chromium with nothing remembered, whose files are in this folder; or the test is skipped."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        reason = f"{' and '.join(missing)} not installed: make browser installs Debian's Chromium"
        assert os.environ.get("FEDPIPE_BROWSER") != "required", reason
        pytest.skip(reason)
    port = free_port()
    with subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        try:
            _await_driver(port)
            session = call(port, "POST", "/session", {"capabilities": {"alwaysMatch": _capabilities(folder)}})["sessionId"]
            yield Browser(port, session)
            call(port, "DELETE", f"/session/{session}")
        finally:
            driver.terminate()


def _capabilities(folder: Path) -> dict[str, Any]:
    options = {"args": [*_FLAGS, f"--user-data-dir={folder}"], "binary": shutil.which("chromium")}
    return {"browserName": "chrome", "acceptInsecureCerts": True, "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}


def _await_driver(port: int) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        try:
            if call(port, "GET", "/status")["ready"]:
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("chromedriver did not start")

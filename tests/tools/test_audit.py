"""`make audit`, with pip-audit itself against a vulnerability service of the test: clean, vulnerable, not audited are three outcomes."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import audit
import pytest
from free_ports import free_port
from serving import serving

ROOT = Path(__file__).parents[2]
LOCK = """\
attrs==25.4.0 \\
    --hash=sha256:adcf7e2a1fb3b36ac48d97835bb6d8ade15b8dcce26aba8bf1d14847b57a3373
six==1.17.0 \\
    --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274
"""
WEAK = {
    "vulns": [
        {
            "id": "PYSEC-2026-1",
            "summary": "Reads past the end",
            "modified": "2026-01-02T00:00:00Z",
            "published": "2026-01-01T00:00:00Z",
            "affected": [
                {
                    "package": {"name": "six", "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.18.0"}]}],
                }
            ],
        }
    ]
}


@contextmanager
def vulnerability_service(answer: Callable[[dict[str, Any]], bytes], status: int = 200) -> Iterator[str]:
    """A service that answers queries of OSV's form; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = answer(query)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, serving(server):
        yield f"http://127.0.0.1:{server.server_port}/v1/query"


def run_audit(service: str, *locks: Path) -> tuple[int, list[str]]:
    """The exit code and the lines of an audit of these locks."""
    command = [sys.executable, ROOT / "tools" / "audit.py", *locks, "--service", service]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    file = tmp_path / "requirements.lock"
    file.write_text(LOCK)
    return file


def nothing_known(_: dict[str, Any]) -> bytes:
    return b"{}"


def six_is_weak(query: dict[str, Any]) -> bytes:
    return json.dumps(WEAK if query["package"]["name"] == "six" else {}).encode()


def test_a_lock_without_known_vulnerabilities_is_clean(lock: Path) -> None:
    with vulnerability_service(nothing_known) as service:
        assert run_audit(service, lock) == (0, [f"audit: {lock}: no known vulnerability in 2 packages"])


def test_a_vulnerable_package_fails_the_audit_and_is_told_with_the_version_that_corrects_it(lock: Path) -> None:
    with vulnerability_service(six_is_weak) as service:
        assert run_audit(service, lock) == (
            1,
            ["six 1.17.0: PYSEC-2026-1, fixed in 1.18.0", f"audit: VULNERABLE: {lock}: 1 known: upgrade"],
        )


def test_a_service_that_cannot_be_reached_is_a_skip_that_says_so(lock: Path) -> None:
    service = f"http://127.0.0.1:{free_port()}/v1/query"

    assert run_audit(service, lock) == (75, [f"audit: SKIPPED: {lock}: {service} cannot be reached: nobody looked for vulnerabilities"])


@pytest.mark.parametrize(("status", "body"), [(503, b"{}"), (404, b"{}"), (200, b"<html>Log in</html>")])
def test_an_answer_that_is_none_of_the_service_is_a_skip_too(lock: Path, status: int, body: bytes) -> None:
    with vulnerability_service(lambda _: body, status) as service:
        assert run_audit(service, lock)[0] == 75


def test_packages_that_pip_audit_passes_over_are_not_taken_for_clean() -> None:
    passed_over = {"dependencies": [{"name": "six", "skip_reason": "Dependency not found on PyPI and could not be audited"}]}

    assert audit.outcome("a.lock", json.dumps(passed_over), "No known vulnerabilities found", "https://osv.example") == audit.Outcome(
        75, "audit: SKIPPED: a.lock: https://osv.example knows nothing of six: nobody looked there"
    )


def test_a_lock_that_pip_audit_cannot_read_fails_the_audit(lock: Path) -> None:
    lock.write_text("six>=1\n")

    with vulnerability_service(nothing_known) as service:
        assert run_audit(service, lock)[0] == 1


def test_of_several_locks_the_worst_counts(lock: Path, tmp_path: Path) -> None:
    unreadable = tmp_path / "unreadable.lock"
    unreadable.write_text("six>=1\n")

    with vulnerability_service(nothing_known, 503) as service:
        assert run_audit(service, unreadable, lock)[0] == 1


def test_the_locks_of_the_images_are_audited_whole() -> None:
    asked = set[str]()

    def answer(query: dict[str, Any]) -> bytes:
        asked.add(f"{query['package']['name']}=={query['version']}")
        return b"{}"

    locks = (ROOT / "Makefile").read_text().partition("IMAGE_LOCKS := ")[2].partition("\n")[0].split()
    pins = {line.split(" ")[0] for name in locks for line in (ROOT / name).read_text().splitlines() if re.match(r"\S+==\S+ \\$", line)}

    with vulnerability_service(answer) as service:
        code, lines = run_audit(service, *(ROOT / name for name in locks))

    assert (code, len(lines)) == (0, len(locks))
    assert len(pins) > 80
    assert pins <= asked, "every package that is installed on every platform"


def test_make_and_ci_pass_over_an_audit_that_was_skipped_and_print_the_skip() -> None:
    target = (ROOT / "Makefile").read_text().partition("\naudit:")[2].partition("\n\n")[0]
    script = (ROOT / ".ci" / "run").read_text()

    assert "[ $$status -eq 75 ] || exit $$status" in target
    assert 'grep -q "^audit: SKIPPED" "$work/audit.log"' in script

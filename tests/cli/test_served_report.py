"""`fedpipe report --server`: fetches what the operator serves, and sends a token nowhere else."""

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedpipe_operator.cli import app_for, report
from fedpipe_operator.report_server.answers import Answer, Request
from fedpipe_operator.report_server.server import serve


class Served:
    """A server that answers what it was told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer = Answer(HTTPStatus.OK, "<html>the report</html>")
        self._server = serve(self._answering, 0, host="127.0.0.1")
        self.url = f"http://localhost:{self._server.server_address[1]}"

    def _answering(self, request: Request) -> Answer:
        self.asked.append((request.path, request.headers.get("authorization", "")))
        return self.answer

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("FEDPIPE_TOKEN", "my-token")
    server = Served()
    yield server
    server.close()


def fedpipe_report(folder: Path, *options: str) -> Result:
    arguments = ["report", "toy", "-n", "wards", "--output", str(folder), *options]
    return CliRunner().invoke(app_for(arguments), arguments)


def test_the_served_report_is_written_beside_those_of_this_machine(served: Served, tmp_path: Path) -> None:
    done = fedpipe_report(tmp_path, "--server", f"{served.url}/")

    assert done.output == f"{tmp_path}/wards/toy/report.html\n"
    assert (tmp_path / "wards" / "toy" / "report.html").read_text() == "<html>the report</html>"
    assert served.asked == [("/wards/toy", "Bearer my-token")]


def test_it_is_opened_in_a_browser_if_that_is_asked_for(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(report.webbrowser, "open", opened.append)
    fedpipe_report(tmp_path, "--server", served.url)
    assert opened == []

    fedpipe_report(tmp_path, "--server", served.url, "--open")

    assert opened == [f"file://{tmp_path}/wards/toy/report.html"]


def test_a_refusal_is_told_in_the_server_s_words(served: Served, tmp_path: Path) -> None:
    served.answer = Answer(HTTPStatus.FORBIDDEN, "you may not get the run\n")
    done = fedpipe_report(tmp_path, "--server", served.url)

    assert (done.exit_code, done.stderr) == (1, f"ReportRefused: {served.url} answers 403: you may not get the run\n")
    assert not (tmp_path / "wards").exists()


def test_a_token_does_not_follow_a_redirect(served: Served, tmp_path: Path) -> None:
    other = Served()
    served.answer = Answer(HTTPStatus.SEE_OTHER, "", {"Location": f"{other.url}/wards/toy"})
    done = fedpipe_report(tmp_path, "--server", served.url)
    other.close()

    assert done.exit_code == 1
    assert other.asked == []


@pytest.mark.parametrize("server", ["http://reports.example", "http://localhost.example", "ftp://localhost", "reports.example"])
def test_a_token_is_sent_by_tls_or_to_this_machine_only(served: Served, tmp_path: Path, server: str) -> None:
    del served
    done = fedpipe_report(tmp_path, "--server", server)

    assert done.exit_code == 1
    assert done.stderr.startswith(f"ServerInvalid: --server {server}: a token is sent by https only, or to localhost")


def test_a_proxy_does_not_get_the_token_of_a_forwarded_port(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Served()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    done = fedpipe_report(tmp_path, "--server", served.url)
    proxy.close()

    assert (done.exit_code, proxy.asked) == (0, [])


def test_without_a_token_it_is_told_how_to_get_one(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDPIPE_TOKEN")
    done = fedpipe_report(tmp_path, "--server", served.url)

    assert done.exit_code == 1
    assert "kubectl create token ACCOUNT -n wards --audience fedpipe.io/report" in done.stderr


def test_a_server_that_does_not_answer_is_told(served: Served, tmp_path: Path) -> None:
    served.close()
    done = fedpipe_report(tmp_path, "--server", served.url)

    assert done.exit_code == 1
    assert done.stderr.startswith(f"ServerUnreachable: {served.url}: ")

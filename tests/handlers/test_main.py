"""The entry point: it waits for the API server where it can, exits where a person must act, and ends at once when the Lease is lost."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import certifi
import pytest
from free_ports import free_port
from stand_in_cluster import SETTINGS

from fedpipe_operator import __main__ as entry
from fedpipe_operator.cluster.api import Kind
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.settings import Replica

UNREACHABLE = TransientError("ApiUnavailable", "no route to host")


@dataclass
class StandInApi:
    """Whether it serves a kind, answer by answer; the last one stays."""

    answers: list[bool | FedPipeError]
    asked: list[str] = field(default_factory=list)

    def serves(self, kind: Kind, namespace: str) -> bool:
        self.asked.append(f"{kind.plural} in {namespace}")
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, FedPipeError):
            raise answer
        return answer


def wait(*answers: bool | FedPipeError) -> StandInApi:
    api = StandInApi(list(answers))
    asyncio.run(entry._wait_for_kinds(api, SETTINGS))  # type: ignore[arg-type]
    return api


def test_an_api_server_that_does_not_answer_is_waited_for_without_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "_API_RETRY_SECONDS", 0.0)

    api = wait(UNREACHABLE, UNREACHABLE, True)

    assert api.asked == ["federatedfinetunes in default"] * 3 + ["edgesites in default"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (False, "the API server does not serve federatedfinetunes and edgesites: install the CRDs"),
        (UserError("ApiForbidden", "the operator's role lacks this right"), "ApiForbidden: the operator's role lacks this right"),
    ],
    ids=["no CRDs", "no rights"],
)
def test_what_a_person_must_correct_ends_the_operator_with_a_message(answer: bool | FedPipeError, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        wait(answer)


@dataclass
class StandInCluster:
    """Its worker processes can be killed."""

    noted: list[str]

    @property
    def workers(self) -> "StandInCluster":
        return self

    def kill(self) -> None:
        self.noted.append("workers killed")


def test_a_process_that_lost_the_lease_ends_at_once_and_its_workers_with_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noted: list[str] = []
    monkeypatch.setattr(entry.os, "_exit", lambda status: noted.append(f"exit {status}"))
    monkeypatch.setattr(entry.logging, "shutdown", lambda: noted.append("log written"))

    entry._exit_at_once(StandInCluster(noted), "the Lease has gone to two")  # type: ignore[arg-type]

    assert noted == ["workers killed", "log written", "exit 1"]
    assert "the Lease has gone to two; a new process stands by" in caplog.text


def test_certificates_that_cannot_be_read_are_waited_for_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ca.crt"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setattr(entry, "_CERTIFICATES_SECONDS", 0.01)

    certificates = Path(certifi.where()).read_text()

    async def corrected_later() -> None:
        waiting = asyncio.create_task(entry._wait_for_certificates(free_port()))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        file.write_text(certificates)
        await waiting

    asyncio.run(corrected_later())


def test_an_address_of_the_api_server_that_cannot_be_read_ends_the_operator_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than that it calls what it was meant to refuse."""
    monkeypatch.setattr(entry, "in_cluster", lambda *_: None)
    monkeypatch.setenv("FEDPIPE_API_SERVERS", "192.0.2.10:https")

    with pytest.raises(SystemExit, match=r"FEDPIPE_API_SERVERS is '192\.0\.2\.10:https': .*install the operator with the chart"):
        entry.make_controller(SETTINGS, Replica("one", "fedpipe", "fedpipe"))


def test_the_operators_stores_refuse_the_endpoints_that_the_chart_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("in_cluster", "for_leases", "_serve"):
        monkeypatch.setattr(entry, name, lambda *_: None)
    monkeypatch.setenv("FEDPIPE_API_SERVERS", "192.0.2.10:6443")

    stores = entry.make_controller(SETTINGS, Replica("one", "fedpipe", "fedpipe")).runs.stores

    assert "192.0.2.10:6443" in stores.api_servers
    assert "192.0.2.10:6443" in stores.identity.guard.api_servers


def test_what_was_just_done_to_jobs_is_remembered_by_a_clock_that_never_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("in_cluster", "for_leases", "_serve"):
        monkeypatch.setattr(entry, name, lambda *_: None)

    controller = entry.make_controller(SETTINGS, Replica("one", "fedpipe", "fedpipe"))

    assert controller.runs.cluster.expectations.clock is time.monotonic

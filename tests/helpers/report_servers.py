"""A server of reports beside a stand-in cluster, and a caller that speaks HTTP with it."""

import http.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stand_in_cluster import KubeWorld

from fedpipe_operator.cluster.api import ACCESS_REVIEWS, TOKEN_REVIEWS, Kind
from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.report_server.answers import Reporter
from fedpipe_operator.report_server.drawing import Drawer
from fedpipe_operator.report_server.gate import Gate
from fedpipe_operator.report_server.reports import Reports
from fedpipe_operator.report_server.server import Tls, serve
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials
from fedpipe_operator.store.address import DirectoryAddress

AUDIENCE: Final = "fedpipe.io/report"

Plain = dict[str, Any]


@dataclass
class StandInReviews:
    """The API server's reviews: whose tokens there are, for which audiences, and who may get which run."""

    users: dict[str, str] = field(default_factory=lambda: {"viewers-token": "viewer", "strangers-token": "stranger"})
    audiences: tuple[str, ...] = (AUDIENCE,)
    may_get: set[tuple[str, str, str]] = field(default_factory=lambda: {("viewer", "default", "toy"), ("viewer", "default", "gone")})
    """User, namespace, run."""
    asked: list[Plain] = field(default_factory=list)
    trouble: FedPipeError | None = None

    def create(self, kind: Kind, namespace: str, body: Plain) -> Plain:
        assert namespace == ""
        self.asked.append(body)
        if self.trouble is not None:
            raise self.trouble
        return {"status": {TOKEN_REVIEWS: self._token, ACCESS_REVIEWS: self._access}[kind](body["spec"])}

    def _token(self, spec: Plain) -> Plain:
        user = self.users.get(spec["token"])
        made_for = set(spec.get("audiences", self.audiences)) & set(self.audiences)
        if user is None or not made_for:
            return {"authenticated": False, "user": {}}
        groups = ["system:authenticated"]
        return {
            "authenticated": True,
            "audiences": sorted(made_for),
            "user": {"username": user, "uid": f"uid-of-{user}", "groups": groups, "extra": {"scopes": ["all"]}},
        }

    def _access(self, spec: Plain) -> Plain:
        what = spec["resourceAttributes"]
        assert (what["verb"], what["group"], what["resource"]) == ("get", "fedpipe.io", "federatedfinetunes")
        return {"allowed": (spec["user"], what["namespace"], what["name"]) in self.may_get}


def reporter_of(world: KubeWorld, reviews: StandInReviews, folder: Path, **drawer: Any) -> Reporter:
    """Answers for the runs of a stand-in cluster, whose stores are folders."""

    def find(namespace: str, name: str) -> Plain | None:
        return world.api.objects.get(("federatedfinetunes", namespace, name))

    def locate(run: Run) -> tuple[DirectoryAddress, Credentials]:
        return DirectoryAddress(root=str(world.folder / "stores" / run.resource.metadata.uid)), Credentials("its key", "its secret")

    gate = Gate(reviews, AUDIENCE)  # type: ignore[arg-type]
    reports = Reports(find, locate, Drawer(folder, **drawer), world.settings.default_store)
    return Reporter(gate.access, lambda namespace, name: reports.page(namespace, name, seconds=60.0), AUDIENCE)


@contextmanager
def served(reporter: Reporter, tls: Tls | None = None) -> Iterator[int]:
    """The port of a server of these answers on this machine."""
    server = serve(reporter.answer, 0, tls, "127.0.0.1")
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def ask(
    port: int, path: str, *, method: str = "GET", body: str | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    connection.request(method, path, body=body, headers=dict(headers or {}))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def bearer(token: str) -> dict[str, str]:
    """The header by which a program names itself."""
    return {"Authorization": f"Bearer {token}"}

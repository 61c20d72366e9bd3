"""Every client of ours finds certificates and proxy by the variables that the manifests give to pods, and not without them."""

import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request

import httpx2
import pytest
from certificates import certificate

from fedpipe_operator.manifests.egress import certificates_of, proxy_variables, with_certificates
from fedpipe_operator.pod_settings import CaBundle, Proxy
from fedpipe_operator.selftest.checks import _send
from fedpipe_operator.store import Credentials, S3Store
from fedpipe_trainer.transfer import receive

CONTENT = b"what the store holds"
Client = Callable[[str, Path], bytes]


def by_boto3(server: str, folder: Path) -> bytes:
    """As operator and aggregation Jobs read."""
    del folder
    return S3Store("fedpipe", "runs", credentials=Credentials("a", "b"), endpoint=server).read("object") or b""


def by_the_trainer(server: str, folder: Path) -> bytes:
    """As trainers read a presigned URL."""
    receive(f"{server}/fedpipe/runs/object", folder / "object", attempts=1)
    return (folder / "object").read_bytes()


def by_the_hubs_client(server: str, folder: Path) -> bytes:
    """By the library that huggingface_hub uses, made as it makes it."""
    del folder
    with httpx2.Client(follow_redirects=True, timeout=None) as client:
        return client.get(f"{server}/fedpipe/runs/object").content


def by_helm_test(server: str, folder: Path) -> bytes:
    """As `helm test` reads a presigned URL."""
    del folder
    return _send(Request(f"{server}/fedpipe/runs/object"))  # noqa: S310 -- this machine's


CLIENTS: Any = pytest.mark.parametrize("read", [by_boto3, by_the_trainer, by_the_hubs_client, by_helm_test])


class Answering(NamedTuple):
    """A server, and what it was asked for."""

    port: int
    asked: list[str]


@pytest.fixture
def serve() -> Iterator[Callable[[ssl.SSLContext | None], Answering]]:
    """A server that answers every GET with the same content: a store, or a proxy that answers for one."""
    servers = list[ThreadingHTTPServer]()

    def start(context: ssl.SSLContext | None) -> Answering:
        asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return Answering(server.server_address[1], asked)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without certificates and proxies."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return monkeypatch


@CLIENTS
def test_a_private_ca_is_trusted_by_the_variables_of_a_pod_and_not_without_them(
    read: Client, serve: Callable[[ssl.SSLContext | None], Answering], clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = serve(context)
    pod: dict[str, Any] = {"containers": [{"env": [], "volumeMounts": []}], "volumes": []}
    trusting = with_certificates(pod, certificates_of(CaBundle(config_map_name="hospital-ca")))

    with pytest.raises(Exception, match=r"(?i)certificate"):
        read(f"https://127.0.0.1:{server.port}", tmp_path)
    for variable in trusting["containers"][0]["env"]:
        clean.setenv(variable["name"], str(file))
    another = serve(context)  # a client of boto3 is kept by its endpoint

    assert read(f"https://127.0.0.1:{another.port}", tmp_path) == CONTENT


@CLIENTS
def test_a_proxy_is_used_by_the_variables_of_a_pod_except_for_hosts_that_are_reached_without(
    read: Client, serve: Callable[[ssl.SSLContext | None], Answering], clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy, direct = serve(None), serve(None)
    for variable in proxy_variables(Proxy(http=f"http://127.0.0.1:{proxy.port}", no_proxy="127.0.0.1,.svc")):
        clean.setenv(variable["name"], variable["value"])

    assert read("http://store.example", tmp_path) == CONTENT
    assert proxy.asked == ["http://store.example/fedpipe/runs/object"]
    assert read(f"http://127.0.0.1:{direct.port}", tmp_path) == CONTENT
    assert (direct.asked, len(proxy.asked)) == (["/fedpipe/runs/object"], 1)

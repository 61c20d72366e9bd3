"""Debian's Prometheus as a child process of a test: it scrapes what a test names, and answers queries.

Debian builds it without the discovery of Kubernetes; `discovery` answers in its place, over Prometheus's discovery by HTTP.
"""

import json
import os
import shutil
import subprocess
import threading
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import yaml
from cluster_user import Kubectl, KubectlError, wait_until
from crds import ROOT
from free_ports import free_port
from installed_operator import RELEASE
from observability.answers import ask
from testcluster.layout import default_layout
from testcluster.packages import unpacked

SCRAPE_SECONDS: Final = 1


def program(name: str) -> Path:
    """`prometheus` or `promtool`: the one on the PATH, else the test cluster's; without them a test fails and is not skipped."""
    found = Path(shutil.which(name) or unpacked(default_layout(), name))
    assert found.exists(), f"{name} is not installed, and {found} is missing: `python3 tests/cluster build` unpacks it"
    return found


def promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run promtool."""
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)


@contextmanager
def prometheus(folder: Path, scrapes: Sequence[dict[str, Any]], rules: Path | None = None) -> Iterator[str]:
    """A Prometheus with these scrape configurations and rules; its URL. It scrapes and evaluates every second."""
    interval = f"{SCRAPE_SECONDS}s"
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "scrape_configs": list(scrapes),
        "rule_files": [str(rules)] if rules else [],
    }
    (folder / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    options = (f"--config.file={folder}/prometheus.json", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={address}")
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([program("prometheus"), *options], stdout=log, stderr=log, env=_without_proxies())
    try:
        wait_until(lambda: _is_ready(f"http://{address}"), "Prometheus is ready", seconds=60, explain=(folder / "prometheus.log").read_text)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def discovery(targets: Callable[[], list[str]]) -> Iterator[str]:
    """The URL for `http_sd_configs`: Prometheus asks there which targets (`host:port`) there are now.

    While the API server is away, Prometheus goes on with the targets that it has.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                found = json.dumps([{"targets": targets()}]).encode()
            except KubectlError as error:
                self.send_error(503, explain=str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *_: object) -> None:
            """Nothing: Prometheus asks every second."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def prometheus_of_the_operator(folder: Path, kubectl: Kubectl, rules: Path | None = None) -> Iterator[str]:
    """A Prometheus that scrapes the operator's pods as the example's configuration says, which may be replaced while it does."""
    example: dict[str, Any] = yaml.safe_load((ROOT / "examples/kubernetes/monitoring/prometheus.yaml").read_text())
    (scrape,) = example["scrape_configs"]
    (found,), (kept, named) = scrape.pop("kubernetes_sd_configs"), scrape.pop("relabel_configs")
    assert (kept["source_labels"], kept["action"]) == (["__meta_kubernetes_pod_container_port_name"], "keep")
    assert (named["target_label"], named["separator"]) == ("release", "/")
    label = found["selectors"][0]["label"]
    every = {"scrape_interval": "3s", "scrape_timeout": "3s"}  # on a busy machine a scrape may take seconds
    release = {"relabel_configs": [{"target_label": "release", "replacement": f"{kubectl.namespace}/{RELEASE}"}]}
    with (
        discovery(lambda: _ports(kubectl, label, kept["regex"])) as targets,
        prometheus(folder, [scrape | every | release | {"http_sd_configs": [{"url": targets, "refresh_interval": "1s"}]}], rules) as url,
    ):
        yield url


def wait_for_a_scrape(url: str) -> None:
    """Wait until the newest scrape of the operator succeeded: after one that failed, a panel of newest values has none."""
    wait_until(lambda: ask(url, "query", query='up{job="fedpipe"} == 1'), "a scrape succeeds", seconds=60)


def _ports(kubectl: Kubectl, label: str, name: str) -> list[str]:
    """The ports of this name of the pods with this label; a pod that has no address yet is left out."""
    pods = [pod for pod in kubectl.list("pods", label) if pod["status"].get("podIP")]
    ports = [(pod["status"]["podIP"], port) for pod in pods for one in pod["spec"]["containers"] for port in one.get("ports", ())]
    return [f"{address}:{port['containerPort']}" for address, port in ports if port["name"] == name]


def _is_ready(url: str) -> bool:
    try:
        ask(url, "query", query="1")
    except (urllib.error.URLError, OSError):
        return False
    return True


def _without_proxies() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}

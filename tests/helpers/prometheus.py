"""Debian's Prometheus as a child process of a test: it scrapes what a test names, and answers queries."""

import json
import os
import shutil
import socket
import subprocess
import urllib.error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from cluster_user import Kubectl, wait_until
from crds import ROOT
from observability.answers import ask
from testcluster.layout import default_layout
from testcluster.packages import unpacked

SCRAPE_SECONDS: Final = 1


def scrape_of_the_operator(kubectl: Kubectl) -> dict[str, Any]:
    """The scrape of the example, from this machine: an operator whose pod is replaced is found again."""
    example: dict[str, Any] = yaml.safe_load((ROOT / "examples/kubernetes/monitoring/prometheus.yaml").read_text())
    (scrape,) = example["scrape_configs"]
    (found,) = scrape["kubernetes_sd_configs"]
    from_here = {"kubeconfig_file": os.environ["KUBECONFIG"], "namespaces": {"names": [kubectl.namespace]}}
    return {**scrape, "kubernetes_sd_configs": [found | from_here]}


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
    address = f"127.0.0.1:{_free_port()}"
    options = (f"--config.file={folder}/prometheus.json", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={address}")
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([program("prometheus"), *options], stdout=log, stderr=log, env=_without_proxies())
    try:
        wait_until(lambda: _is_ready(f"http://{address}"), "Prometheus is ready", seconds=60, explain=(folder / "prometheus.log").read_text)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _is_ready(url: str) -> bool:
    try:
        ask(url, "query", query="1")
    except (urllib.error.URLError, OSError):
        return False
    return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _without_proxies() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}

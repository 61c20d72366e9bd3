"""The Grafana dashboards, whose panels and queries are in `observability/`: `python tools/dashboards.py write | draw | snapshot …`.

`write` writes them as JSON into the chart. `draw` draws the pictures of docs/dashboards.md from the answers that
`tests/e2e/test_prometheus.py` stored. `snapshot URL NAMESPACE RUN FOLDER` draws all three into a folder, without Grafana, of the last
quarter of an hour of the Prometheus at this URL.
"""

import sys
from pathlib import Path
from typing import Final

from observability import dashboards, pictures
from observability.answers import Source

_SECONDS: Final = 900.0
_RATE_INTERVAL: Final = "1m"


def _draw() -> None:
    for file, content in pictures.pictures().items():
        file.write_text(content, encoding="utf-8")


def _snapshot(url: str, namespace: str, run: str, folder: str) -> None:
    variables = {"release": ".*", "namespace": namespace, "run": run, "site": ".*", "job": ".*", "__rate_interval": _RATE_INTERVAL}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for uid, content in pictures.snapshot(Source(url, variables, _SECONDS)).items():
        (Path(folder) / f"{uid}.svg").write_text(content, encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Perform a command."""
    match arguments:
        case ["write"]:
            dashboards.write()
        case ["draw"]:
            _draw()
        case ["snapshot", url, namespace, run, folder]:
            _snapshot(url, namespace, run, folder)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

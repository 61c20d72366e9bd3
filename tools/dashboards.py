"""The Grafana dashboards, whose panels and queries are in `observability/`: `python tools/dashboards.py write | draw`.

`write` writes them as JSON into the chart. `draw` draws the pictures of docs/dashboards.md from the answers that
`tests/e2e/test_prometheus.py` stored.
"""

import sys
from typing import Final

from observability import dashboards, pictures


def _draw() -> None:
    for file, content in pictures.pictures().items():
        file.write_text(content, encoding="utf-8")


_COMMANDS: Final = {"write": dashboards.write, "draw": _draw}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in _COMMANDS:  # noqa: PLR2004 -- the program and its command
        sys.exit(__doc__)
    _COMMANDS[sys.argv[1]]()

"""docs/metrics.md is what its generator makes of the catalogue."""

import metrics_page

from fedpipe_operator.metrics.catalogue import CATALOGUE


def test_the_page_is_what_the_catalogue_makes_it() -> None:
    assert metrics_page.PAGE.read_text(encoding="utf-8") == metrics_page.page(), "run python tools/metrics_page.py"


def test_the_page_has_a_line_for_every_metric() -> None:
    lines = metrics_page.page().splitlines()

    assert [one.name for one in CATALOGUE if not any(line.startswith(f"| `{one.name}` | {one.type} |") for line in lines)] == []

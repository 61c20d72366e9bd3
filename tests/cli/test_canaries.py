"""A whole `fedpipe run` on data of canaries: nothing that leaves a site, and nothing that is printed, holds one.

Searched is all that there is after a run but the sites' own volumes and caches: the store with its plans, results, adapters, report and
export, the status, the tasks and logs of all jobs, and the output.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from local_runs import WORDS, Fleet, a_fleet

pytestmark = pytest.mark.slow

CANARY: Final = "c4n4ry"
LABELS: Final = sorted(WORDS)
ROWS: Final = 24


def rows(site: str) -> list[dict[str, Any]]:
    return [{"text": f"{CANARY} {site} {at}", "label": LABELS[at % 3], f"{CANARY}_column": CANARY} for at in range(ROWS)]


def write(folder: Path, found: list[dict[str, Any]], extra: str = "") -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found) + extra)


def write_headerless(folder: Path) -> None:
    (folder / "train.csv").write_text("".join(f"{CANARY} {at},{LABELS[at % 3]}\n" for at in range(ROWS)))


def write_unusable_policy(folder: Path) -> None:
    (folder / "fedpipe-policy.yaml").write_text(f"{CANARY}: [{CANARY}\n")


FAULTS: dict[str, Callable[[Path], None]] = {
    "no fault": lambda folder: write(folder, rows("south")),
    "an unknown label": lambda folder: write(folder, [row | {"label": f"{CANARY}-label"} for row in rows("south")]),
    "broken JSON": lambda folder: write(folder, rows("south"), f'{{"text": "{CANARY}", {CANARY}\n' * 4),
    "a CSV file without a header": write_headerless,
    "an unusable policy": write_unusable_policy,
}
ON_EVERY_CHANGE: Final = ("no fault", "an unusable policy")
"""Of the others `tests/trainer/test_nothing_is_quoted.py` performs every task, and the whole run follows every night."""


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Three sites whose cells, other columns and forbidden labels are canaries, and whose policies show nothing."""
    made = a_fleet(tmp_path)
    for site in ("north", "south", "west"):
        folder = tmp_path / "volumes" / f"{site}-data"
        # One label that the policy does not allow: its row is left out, and no profile names it.
        write(folder, [*rows(site), {"text": CANARY, "label": f"{CANARY}-label"}])
        (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(site)[:6]))
    made.change("EdgeSite", policy={"labels": LABELS, "columns": ["text", "label"]})
    made.change("FederatedFineTune", sites={"quorum": 0.6}, rounds={"count": 1, "deadline": "5m"}, evaluation={"samples": 20})
    return made


@pytest.mark.parametrize("fault", [pytest.param(one, marks=() if one in ON_EVERY_CHANGE else pytest.mark.nightly) for one in FAULTS])
def test_no_object_log_or_file_of_a_run_has_a_cell_a_label_or_a_column_that_is_not_allowed(fleet: Fleet, fault: str) -> None:
    FAULTS[fault](fleet.folder / "volumes" / "south-data")
    if "CSV" in fault:
        document = (fleet.folder / "run.yaml").read_text()
        (fleet.folder / "run.yaml").write_text(document.replace("train.jsonl", "train.csv", 2).replace("train.csv", "train.jsonl", 1))

    output = fleet.run("--no-compare")

    found = {str(path): path.read_bytes() for path in (fleet.folder / "runs").rglob("*") if path.is_file()}
    assert [path for path, content in found.items() if CANARY.encode() in content] == []
    assert CANARY not in output
    assert any(path.endswith("export/merged/config.json") for path in found)
    status = (fleet.store.parent / "status.json").read_text()
    assert ("south is left out" in status) == (fault != "no fault")

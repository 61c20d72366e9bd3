"""One run of an arm by `fedpipe run`, and its figures: a JSON file each, so that a benchmark that was stopped goes on where it was."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from configuration import Arm, changed

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.report import RunRecord, read_record
from fedpipe_operator.report.facts import MeasuredRow, TrainingRow, measured_rows, training_rows
from fedpipe_operator.store import DirectoryStore

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = ROOT / "examples" / "edge"
FOLDER: Final = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """What a run of an arm reached."""

    losses: list[float]
    """On the validation rows of all sites, by round; the first is that of the untouched base."""
    seconds: float
    load: float
    """Mean load of the machine in the run's last minute, its own included."""
    trainings: list[dict[str, Any]]
    """By site, see `report.facts.TrainingRow`."""
    profiles: list[dict[str, Any]]
    """By site, see `report.facts.MeasuredRow`."""


def stored(arm: Arm, rounds: int) -> Result | None:
    """The result of so many rounds of the arm; None: there is none yet."""
    path = _path(arm, rounds)
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def made(arm: Arm, rounds: int, work: Path) -> Result:
    """The result, from its file, otherwise from a run in this folder, which goes on with an unfinished one."""
    found = stored(arm, rounds)
    if found is not None:
        return found
    folder = work / f"{arm.key}-{rounds}"
    _write_objects(folder, arm, rounds)
    started = time.monotonic()
    command = [sys.executable, "-m", "fedpipe_operator.cli", "run", str(folder), "--no-compare", "--max-concurrent", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--output", str(folder / "runs"), "--volumes", str(EXAMPLE / "volumes")], check=True, env=environment)
    result = _result(_record(folder), time.monotonic() - started)
    path = _path(arm, rounds)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    return result


def _path(arm: Arm, rounds: int) -> Path:
    return FOLDER / f"{arm.key}-{rounds}.json"


def _write_objects(folder: Path, arm: Arm, rounds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    run = yaml.safe_load((EXAMPLE / "run.yaml").read_text(encoding="utf-8"))
    run["spec"] = changed(run["spec"], arm, rounds)
    (folder / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    (folder / "sites.yaml").write_text((EXAMPLE / "sites.yaml").read_text(encoding="utf-8"), encoding="utf-8")


def _record(folder: Path) -> RunRecord:
    resource = FederatedFineTune.model_validate(yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8")))
    run = RunFolder(folder / "runs", resource)
    return read_record(run.read_only(), DirectoryStore(run.store))


def _result(record: RunRecord, seconds: float) -> Result:
    losses = [record.evaluations[round_].loss for round_ in sorted(record.evaluations)]
    rows: tuple[list[TrainingRow], list[MeasuredRow]] = training_rows(record), measured_rows(record)
    trainings, profiles = ([asdict(row) for row in of_sites] for of_sites in rows)
    return Result([loss for loss in losses if loss is not None], round(seconds, 1), os.getloadavg()[0], trainings, profiles)

"""The results of the runs: one JSON file each, named by the configuration's key, so that a benchmark that was killed goes on."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configuration import Run, Study, key_of
from federation import run, study
from site_data import keep_data

FOLDER = Path(__file__).parent / "results"


def stored(configuration: Run | Study) -> dict[str, Any] | None:
    """The stored result, or None."""
    path = FOLDER / f"{key_of(configuration)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def compute(name: str, configuration: Run | Study) -> dict[str, Any]:
    """The result: from its file, otherwise computed and stored when it is complete."""
    found = stored(configuration)
    if found is not None:
        return found
    started, curve = time.monotonic(), list[dict[str, Any]]()
    if isinstance(configuration, Run):
        for point in run(configuration):
            curve.append(asdict(point))
            slow = "" if point.slow_accuracy is None else f", slow {point.slow_accuracy:.3f}"
            print(f"{name}: {point.seconds:.0f} s, accuracy {point.accuracy:.3f}, loss {point.loss:.3f}{slow}", flush=True)
    else:
        for steps, quality in study(configuration):
            curve.append({"steps": steps, **asdict(quality)})
            print(f"{name}: {steps} steps, accuracy {quality.accuracy:.3f}, loss {quality.loss:.3f}", flush=True)
    if not curve:
        raise SystemExit(f"{name}: no round ends in the time of the run, so there is nothing to store: give it more seconds")
    if isinstance(configuration, Run):
        keep_data(configuration.problem, len(configuration.slowdowns))
    result = {"name": name, "configuration": asdict(configuration), "real_seconds": round(time.monotonic() - started, 1), "curve": curve}
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{key_of(configuration)}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.rename(path)
    return result

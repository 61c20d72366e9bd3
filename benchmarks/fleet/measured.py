"""The profile of a site of the fastest tier, measured by the trainer's own profile task in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from configuration import E2E, NEWSGROUPS, PROFILES, Run, Study, bits_of
from fleet_sites import BATCHES
from ingredients.models import model_folder
from task import CACHE, MODELS, load_task, rows_of

from fedpipe_trainer.contract import Data, ImportanceMethod, Model, ProfileTask, RunRef, SequenceClassification, parse_result

_VALIDATION: Final = 100
_IMPORTANCE: Final = {NEWSGROUPS: ImportanceMethod.NONE, E2E: ImportanceMethod.GRADIENT}
"""Whether the profile's seconds contain the scores, see `fleet_sites`."""


def measure_profile(configuration: Run | Study) -> Path:
    """Measure on one thread, and write the profile of the run's data and base. Nothing else should run meanwhile."""
    problem, bits = configuration.problem, bits_of(configuration)
    train, validation = rows_of(problem.data)
    objective = load_task(problem).objective
    if isinstance(objective, SequenceClassification):
        objective = objective.model_copy(update={"labels": ()})  # a profile finds them
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {"train": train, "validation": validation[:_VALIDATION]}
        for part, rows in data.items():
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = ProfileTask(
            run=RunRef(namespace="benchmark", name="fleet", uid="fleet"),
            site="fastest",
            model=Model(source=model_folder(MODELS[problem.data], CACHE).as_uri()),
            objective=objective,
            data=Data(train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl")),
            bits=tuple(sorted({16, bits})),  # the tiers have what 16 bits need
            batch_sizes=tuple(size for size in BATCHES if size <= problem.batch_size),
            importance=_IMPORTANCE[problem.data],
            contributors=2,
            result=(folder / "result.json").as_uri(),
        )
        (folder / "task.json").write_text(task.to_json(), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "fedpipe_trainer", str(folder / "task.json")], check=True, env=environment)
        result = parse_result((folder / "result.json").read_text(encoding="utf-8"))
    PROFILES[problem.data, bits].write_text(json.dumps(json.loads(result.to_json()), indent=1) + "\n", encoding="utf-8")
    return PROFILES[problem.data, bits]

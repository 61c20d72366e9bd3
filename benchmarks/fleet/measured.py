"""The profile of a site of the fastest tier, measured by the trainer's own profile task in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from configuration import PROFILE
from fleet_sites import BATCHES
from ingredients.newsgroups import newsgroups
from task import CACHE

from fedpipe_trainer.contract import Data, ImportanceMethod, Model, ProfileTask, RunRef, SequenceClassification, parse_result


def measure_profile(max_length: int) -> None:
    """Measure on one thread, and write `profile.json`. Nothing else should run meanwhile."""
    train, validation = newsgroups(CACHE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {"train": train, "validation": validation[:100]}
        for part, rows in data.items():
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = ProfileTask(
            run=RunRef(namespace="benchmark", name="fleet", uid="fleet"),
            site="fastest",
            model=Model(source=(CACHE / "models" / "minilm").as_uri()),
            objective=SequenceClassification(text="text", label="label", max_length=max_length),
            data=Data(train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl")),
            bits=(16,),
            batch_sizes=BATCHES,
            importance=ImportanceMethod.NONE,
            result=(folder / "result.json").as_uri(),
        )
        (folder / "task.json").write_text(task.to_json(), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "fedpipe_trainer", str(folder / "task.json")], check=True, env=environment)
        result = parse_result((folder / "result.json").read_text(encoding="utf-8"))
    PROFILE.write_text(json.dumps(json.loads(result.to_json()), indent=1) + "\n", encoding="utf-8")

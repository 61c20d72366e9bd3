"""A site as the product runs it: tasks made by the operator's own code, each performed by the trainer in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from configuration import BATCH, Configuration, Work
from ingredients.models import model_folder
from ingredients.newsgroups import newsgroups
from ingredients.packages import cache_folder
from ingredients.splitting import balanced_sample
from ingredients.tables import Row, write_rows

from fedpipe_operator.admission import AdmittedProfile
from fedpipe_operator.aggregation.tensors import TensorWriter, factor_keys
from fedpipe_operator.api import EdgeSite
from fedpipe_operator.api.finetune import FederatedFineTune
from fedpipe_operator.planning import facts_of, plan_round
from fedpipe_operator.reconcile.tasks import TaskContext, TaskInputs, profile_task, training_task
from fedpipe_operator.rounds import Run, StartProfile, StartTraining
from fedpipe_operator.rounds.observed import CommitSummary
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.sites import SiteProfile, site_profile
from fedpipe_operator.store.directory import DirectoryStore
from fedpipe_trainer.contract import Artifact, Bits, Data, Model, Plan, ProfileResult, ProfileTask, TrainResult, TrainTask, parse_result

CACHE: Final = cache_folder()
NAME: Final = "site"
RANKS: Final = (0, 4, 8, 16, 32)
_CLOCKS: Final = {
    "wall": ("-m", "fedpipe_trainer"),
    "processor": (
        "-c",
        "import runpy, time; time.monotonic = time.process_time; runpy.run_module('fedpipe_trainer', run_name='__main__', alter_sys=True)",
    ),
}
"""By name: how python performs a task whose seconds are those of this clock. With one thread and files in the page cache, the processor
time of a task is what it takes on a machine that is not shared; on one that is, its wall-clock time says how busy the others are."""
CLOCKS: Final = tuple(_CLOCKS)
_ROUND: Final = 2
"""The first round that starts from a global adapter."""
SITE: Final = EdgeSite.model_validate(
    {
        "metadata": {"name": NAME},
        "spec": {
            "data": {
                "train": "train.jsonl",
                "validation": "validation.jsonl",
                "volume": {"persistentVolumeClaim": {"claimName": "data"}},
            },
            "policy": {"minSites": 1},
            # The store is a folder of this machine.
            "capacity": {"bandwidth": {"up": "100G", "down": "100G"}},
        },
    }
)


@dataclass(frozen=True)
class Load:
    """How much of the machine a task had."""

    seconds: float
    """Wall-clock seconds of its process."""
    cpu_seconds: float
    """Processor seconds of its process."""
    other_cores: float
    """Cores that other processes used meanwhile, on average."""


def resource(work: Work, bits: Bits, configuration: Configuration | None = None) -> FederatedFineTune:
    """The run of a work at one bit width, whose only plan is that of the configuration."""
    plans = [] if configuration is None else [_given_plan(work, configuration)]
    planning = {"mode": "Manual", "plans": plans} if plans else {}
    spec = {
        "model": {"source": f"pvc://models/{work.model}"},
        "task": work.task,
        "store": {"bucket": "fedpipe"},
        "planning": {"bits": [bits], "ranks": list(RANKS), "batchSizes": [1, 2, 4, 8, BATCH]} | planning,
        "training": {"learningRate": 1e-3},
        "evaluation": {"maxSamples": 100, "generations": 0},
    }
    return FederatedFineTune.model_validate({"metadata": {"name": "forecasts", "uid": "0"}, "spec": spec})


def forecast_plan(work: Work, configuration: Configuration, site: SiteProfile) -> Plan:
    """The plan of this configuration, with the planner's forecast."""
    spec = resource(work, configuration.bits, configuration).spec
    made = plan_round(spec, {NAME: site}, facts_of({NAME: site}, spec.task).head)
    return made.plans.plans[NAME]


def site_of(result: ProfileResult) -> SiteProfile:
    """The site as the planner sees it after this profile."""
    return site_profile(SITE, AdmittedProfile(result))


class Machine:
    """This machine as a site: its data and a store in a scratch folder, one thread for each task."""

    def __init__(self, work: Work, scratch: Path, clock: str) -> None:
        self._work, self._scratch, self.clock = work, scratch, clock
        self._store = DirectoryStore(scratch / "store")
        train, validation = newsgroups(CACHE)
        write_rows(scratch / "train.jsonl", _balanced(train, work.train_per_label))
        write_rows(scratch / "validation.jsonl", _balanced(validation, work.validation_per_label))
        data = Data(train=str(scratch / "train.jsonl"), validation=str(scratch / "validation.jsonl"))
        self._inputs = TaskInputs(Model(source=model_folder(work.model, CACHE).as_uri()), data)

    def profile(self, bits: Bits) -> tuple[ProfileResult, Load]:
        """The operator's profile task of this site, for a run that allows this bit width only."""
        task = profile_task(self._context(resource(self._work, bits)), StartProfile(NAME, 0), self._inputs)
        result, load = self._perform(task)
        assert isinstance(result, ProfileResult)  # noqa: S101 - a profile task has such a result
        return result, load

    def train(self, configuration: Configuration, site: SiteProfile) -> tuple[TrainResult, Load]:
        """The operator's training task of a round that starts from a global adapter, which it evaluates first."""
        run = resource(self._work, configuration.bits, configuration)
        facts = facts_of({NAME: site}, run.spec.task)
        plan = RoundPlan(
            round=_ROUND,
            started_at=0.0,
            fingerprint=facts.fingerprint,
            labels=facts.labels,
            weights=facts.weights,
            head=facts.head,
            plans={NAME: forecast_plan(self._work, configuration, site)},
            selected=(NAME,),
            evaluators=(NAME,),
            needed=1,
        )
        action = StartTraining(NAME, _ROUND, attempt=0, evaluates=True)
        task = training_task(self._context(run), action, self._inputs, plan=plan, previous=self._global_adapter(plan))
        result, load = self._perform(task)
        assert isinstance(result, TrainResult)  # noqa: S101 - a train task has such a result
        return result, load

    def _context(self, run: FederatedFineTune) -> TaskContext:
        return TaskContext(Run(run, (SITE,)), self._store)

    def _global_adapter(self, plan: RoundPlan) -> CommitSummary:
        """A round's adapter of the largest rank, written by the operator's own writer with small random values."""
        path, rank, values = self._store.root / "global", max(RANKS), np.random.default_rng(0)
        shapes = {key: plan.head[key] for key in sorted(plan.head)}
        for weight, (d_out, d_in) in sorted(plan.weights.items()):
            shapes |= dict(zip(factor_keys(weight), ((rank, d_in), (d_out, rank)), strict=True))
        with path.open("wb") as file:
            writer = TensorWriter(file, shapes)
            for key, shape in shapes.items():
                writer.write(key, 1e-3 * values.standard_normal(shape, dtype=np.float32))
            adapter = writer.close(path.name)
        return _commit(adapter)

    def _perform(self, task: ProfileTask | TrainTask) -> tuple[Any, Load]:
        """The result of a task, and how much of the machine its process had."""
        path = self._scratch / "task.json"
        path.write_text(task.to_json())
        before, started = _machine_seconds(), time.perf_counter()
        command = [sys.executable, *_CLOCKS[self.clock], str(path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "FEDPIPE_CACHE": str(self._scratch / "cache")}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        _, log = process.communicate()
        seconds, after = time.perf_counter() - started, _machine_seconds()
        if process.returncode:
            raise SystemExit(f"a {task.kind} task ended with exit status {process.returncode}:\n{log[-4000:]}")
        result = parse_result(Path(str(task.result).removeprefix("file://")).read_text())
        own = after["children"] - before["children"]
        return result, Load(seconds, own, (after["busy"] - before["busy"] - own) / seconds)


def _given_plan(work: Work, configuration: Configuration) -> Mapping[str, Any]:
    return {
        "bits": configuration.bits,
        "rank": configuration.rank,
        "steps": work.steps,
        "batchSize": BATCH,
        "microBatchSize": configuration.micro_batch,
        "layers": configuration.layers,
        "gradientCheckpointing": configuration.checkpointing,
    }


def _commit(adapter: Artifact) -> CommitSummary:
    return CommitSummary(
        round=_ROUND - 1,
        adapter=adapter,
        contributions=(),
        refused={},
        absent={},
        out_of_memory={},
        late=(),
        truncated_energy=0.0,
        finished_at=0.0,
        bytes_read=0,
    )


def _balanced(rows: list[Row], per_label: int) -> list[Row]:
    return [rows[index] for index in balanced_sample([row["label"] for row in rows], per_label, seed=0)]


def _machine_seconds() -> dict[str, float]:
    """Processor seconds of all processes of the machine, and of this one's children."""
    busy, own = psutil.cpu_times(), os.times()
    return {"busy": sum(busy) - busy.idle - busy.iowait - busy.guest - busy.guest_nice, "children": own.children_user + own.children_system}

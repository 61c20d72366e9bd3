"""A stand-in for every trainer: it reads a pod's task, waits a seeded random time, writes a trainer's result, and ends the pod.

Nothing is trained. The times depend on seed and task name, so that two runs of the benchmark have the same ones.
"""

import asyncio
import base64
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import trainer_results
from api import Api, Plain, with_retries
from yarl import URL

from fedpipe_trainer.contract import PiecesUpload, PostForm, TrainTask, Upload, parse_task

SECONDS: Mapping[str, tuple[float, float]] = {
    "profile": (5, 15),
    "dry-export": (5, 15),
    "train": (20, 60),
    "evaluate": (5, 15),
    "export": (5, 15),
}
"""Shortest and longest duration of each kind of task at pace 1, drawn uniformly; a training evaluates first, as long as an evaluation."""

_LAYERS, _SIDE = 12, 16
_PODS = "/api/v1/pods?fieldSelector=status.phase%3DRunning&labelSelector=fedpipe.io%2Ftask"


def use_many_weights() -> None:
    """Use as many weights as a small real model has, so that plans, tasks and results have real sizes; each weight is tiny."""
    names = (f"layer.{layer}.{part}" for layer in range(_LAYERS) for part in "qkvo")
    trainer_results.WEIGHTS.clear()
    trainer_results.WEIGHTS.update(dict.fromkeys(names, (_SIDE, _SIDE)))


@dataclass
class StandIn:
    """The trainers of all runs."""

    api: Api
    pace: float
    seed: int
    reported: dict[str, float] = field(default_factory=dict)
    """When each Job's pod ended, in Unix seconds, by the Job's name."""
    _started: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Run until cancelled."""
        use_many_weights()
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=32)) as store:
            try:
                async for event in self.api.watch(_PODS):
                    if event["type"] in ("ADDED", "MODIFIED") and "deletionTimestamp" not in event["object"]["metadata"]:
                        self._start(event["object"], store)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, pod: Plain, store: aiohttp.ClientSession) -> None:
        if pod["metadata"]["uid"] not in self._started:
            self._started.add(pod["metadata"]["uid"])
            task = asyncio.create_task(self._simulate(pod, store))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _simulate(self, pod: Plain, store: aiohttp.ClientSession) -> None:
        meta, start = pod["metadata"], time.monotonic()
        job, kind = meta["labels"]["batch.kubernetes.io/job-name"], meta["labels"]["fedpipe.io/task"]
        chance = random.Random(f"{self.seed}/{job}")  # noqa: S311 -- no secret
        secret = await self.api.get(f"/api/v1/namespaces/{meta['namespace']}/secrets/{job}")
        task = parse_task(base64.b64decode(secret["data"]["task.json"]).decode())
        evaluation = trainer_results.evaluation_within(task) if isinstance(task, TrainTask) else None
        if evaluation is not None:
            start += chance.uniform(*SECONDS["evaluate"]) * self.pace
            await asyncio.sleep(start - time.monotonic())
            await _write_result(evaluation, store)
        await asyncio.sleep(start + chance.uniform(*SECONDS[kind]) * self.pace - time.monotonic())
        await _write_result(task, store)
        self.reported[job] = time.time()
        await self.api.patch(f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status", _succeeded_status(pod))


async def _write_result(task: Any, store: aiohttp.ClientSession) -> None:  # noqa: ANN401 -- any kind of task
    """Write the adapter, then the result."""
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        local = task.model_copy(update={"adapter": f"file://{adapter}"}) if isinstance(task, TrainTask) else task
        result = trainer_results.good_trainer(local, Path(folder))
        if isinstance(task, TrainTask):
            assert not isinstance(task.adapter, PiecesUpload), "updates of this size go in one request"  # noqa: S101 -- for mypy
            await _write(store, task.adapter, adapter.read_bytes())
    await _write(store, task.result, result.to_json().encode())


async def _write(store: aiohttp.ClientSession, to: Upload, data: bytes) -> None:

    async def send() -> None:
        async with _request(store, to, data) as answer:
            answer.raise_for_status()

    await with_retries(send)


def _request(store: aiohttp.ClientSession, to: Upload, data: bytes) -> Any:  # noqa: ANN401 -- aiohttp's own, which it does not export
    if not isinstance(to, PostForm):
        return store.put(URL(to, encoded=True), data=data)
    form = aiohttp.FormData(dict(to.fields))
    form.add_field("file", data, filename="file")
    return store.post(URL(to.url, encoded=True), data=form)


def _succeeded_status(pod: Plain) -> Plain:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    started = pod["status"]["startTime"]
    state = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": started, "finishedAt": now}}
    containers = [one | {"ready": False, "state": state} for one in pod["status"]["containerStatuses"]]
    return {"status": {"phase": "Succeeded", "containerStatuses": containers}}

"""Writes a run to MLflow: what the server does not have yet, as its own tags of the run say.

A round's figures and the tag that counts it are one request, so a round is there whole or not at all; artefacts are written anew until the
tag counts them. So a kill between two requests, or an answer that is lost, writes nothing twice and leaves nothing out.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

from fedpipe_operator.tracking.content import End, RoundEntry, identity, parameters
from fedpipe_operator.tracking.mlflow import Metric, MlflowClient, TrackedRun
from fedpipe_operator.tracking.records import FinishedRounds

_ROUND: Final = "fedpipe.round"
"""The tag with the last round that was logged."""
_ARTIFACTS: Final = "fedpipe.artifacts"
"""The tag with the number of artefacts that were written, which is the same for the same rounds."""
_RUNNING: Final = "RUNNING"


class Artifact(NamedTuple):
    """A file of the run."""

    path: str
    content: bytes


class Place(NamedTuple):
    """What else is needed of a run."""

    experiment: str
    store: str
    """Where its results are, as S3 tools write it."""
    end: End | None


def write_run(client: MlflowClient, rounds: FinishedRounds, place: Place) -> str | None:
    """Write what the server does not have yet; the run's page there, None if there is nothing to write yet.

    Raises:
        FedPipeError: what the client and the store raise.
    """
    if rounds.first_plan is None:
        return None
    experiment = client.experiment_id(place.experiment)
    run = _only_run(client, experiment, rounds, place)
    _log_rounds(client, run, rounds, place)
    _write_artifacts(client, run, rounds, place.end)
    if place.end is not None and run.info.status in (_RUNNING, ""):
        client.end_run(run.info.run_id, "FINISHED" if place.end.is_complete else "FAILED", _milliseconds(place.end.at))
    return f"{client.server.url}/#/experiments/{experiment}/runs/{run.info.run_id}"


def _only_run(client: MlflowClient, experiment: str, rounds: FinishedRounds, place: Place) -> TrackedRun:
    """The run of this uid, made if there is none. Of several, which two operators made at once, all choose one; the others are deleted."""
    resource, plan = rounds.run.resource, rounds.first_plan
    assert plan is not None  # noqa: S101 -- the caller asked
    found = client.runs_of(experiment, resource.results_uid)
    if not found:
        tags = identity(resource, plan.plans, place.store)
        return client.create_run(experiment, resource.metadata.name, round(plan.started_at * 1000), tags)
    for other in found[1:]:
        client.delete_run(other.info.run_id)
    return found[0]


def _log_rounds(client: MlflowClient, run: TrackedRun, rounds: FinishedRounds, place: Place) -> None:
    plan = rounds.first_plan
    assert plan is not None  # noqa: S101 -- the caller asked
    params = {name: value for name, value in parameters(rounds.run.spec, plan).items() if name not in run.params}
    tags = {name: value for name, value in identity(rounds.run.resource, plan.plans, place.store).items() if run.tags.get(name) != value}
    for entry in rounds.after(_count(run, _ROUND)):
        client.log_batch(run.info.run_id, _metrics(entry), params, {**tags, _ROUND: str(entry.round)})
        params, tags = {}, {}


def _metrics(entry: RoundEntry) -> Iterator[Metric]:
    at = round(entry.at * 1000)
    for name, value in entry.figures.items():
        yield Metric(name, value, at, entry.round)
    for site, figures in entry.by_site.items():
        for name, value in figures.items():
            yield Metric(f"site/{site}/{name}", value, at, entry.round)


def _write_artifacts(client: MlflowClient, run: TrackedRun, rounds: FinishedRounds, end: End | None) -> None:
    """Each is counted after it is written. A server that takes none is left alone: where the results are is one of the tags."""
    if run.artifact_folder is None:
        return
    written = max(0, _count(run, _ARTIFACTS))
    for number, one in enumerate(_artifacts(rounds, end, written), start=written + 1):
        client.write_artifact(f"{run.artifact_folder}/{one.path}", one.content)
        client.log_batch(run.info.run_id, (), {}, {_ARTIFACTS: str(number)})


def _artifacts(rounds: FinishedRounds, end: End | None, written: int) -> Iterator[Artifact]:
    """The plan of each finished round, and at a run's end its model card; the first `written` of them are left out."""
    if written > 0 and next(rounds.after(written - 1), None) is None:
        return  # more than there are rounds: with the card
    for entry in rounds.after(written):
        yield Artifact(f"plans/round-{entry.round:04d}.json", rounds.plan_shown(entry))
    card = rounds.model_card() if end is not None and end.is_complete else None
    if card is not None:
        yield Artifact("model-card.md", card)


def _count(run: TrackedRun, tag: str) -> int:
    """The number in this tag of ours; -1 if it is not there, or somebody wrote something else into it."""
    text = run.tags.get(tag, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else -1  # noqa: PLR2004 -- more than there can be


def _milliseconds(rfc3339: str) -> int:
    return round(datetime.fromisoformat(rfc3339).timestamp() * 1000)

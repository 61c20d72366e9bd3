"""A client of MLflow's REST API (2.0), as far as a run needs it: seven calls that servers of all versions have.

MLflow's own client is not used: mlflow-skinny brings 30 packages for these, follows redirects, and connects wherever a name leads.
https://mlflow.org/docs/latest/rest-api.html
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store.http_server import Answer, HttpServer
from fedpipe_operator.store.s3_errors import shown_words

_API: Final = "/api/2.0/mlflow"
_ARTIFACTS: Final = "/api/2.0/mlflow-artifacts/artifacts"
_PROXIED: Final = re.compile(r"mlflow-artifacts:/+(?P<path>[A-Za-z0-9._/-]{1,512})")
"""An artifact URI whose files the server itself takes, which it does unless it is started otherwise; with a host, another one would."""
_OK: Final = 200
_REDIRECTS: Final = range(300, 400)
_DENIED: Final = (401, 403)
_LATER: Final = frozenset({408, 429, *range(500, 600)})
_NOT_FOUND: Final = "RESOURCE_DOES_NOT_EXIST"
_EXISTS: Final = "RESOURCE_ALREADY_EXISTS"

_RUNS: Final = 10
"""That are asked for at once, of one."""
_PAIRS: Final = 1000
"""Parameters or tags of a run."""
_VALUES: Final = 250_000
"""Of JSON in an answer: a run of a thousand sites has some 20,000 metrics. As objects, 4 MiB of small ones take a third of a gigabyte, and
all threads wait for seconds."""

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""As the server gives one: it becomes a part of URLs and of requests."""
Parsed = TypeVar("Parsed", bound=BaseModel)


class _Pair(BaseModel):
    key: str
    value: str = ""


class _Info(BaseModel):
    run_id: Id
    status: str = ""
    artifact_uri: str = ""


_Pairs = Annotated[list[_Pair], Field(max_length=_PAIRS)]


class _Data(BaseModel):
    params: _Pairs = []
    tags: _Pairs = []


class TrackedRun(BaseModel):
    """A run as the server has it."""

    info: _Info
    data: _Data = _Data()

    @property
    def params(self) -> dict[str, str]:
        """Its parameters."""
        return {one.key: one.value for one in self.data.params}

    @property
    def tags(self) -> dict[str, str]:
        """Its tags."""
        return {one.key: one.value for one in self.data.tags}

    @property
    def artifact_folder(self) -> str | None:
        """Where the server takes its artefacts; None: clients write them elsewhere by themselves."""
        found = _PROXIED.fullmatch(self.info.artifact_uri)
        return found["path"].strip("/") if found and ".." not in found["path"].split("/") else None


class _Runs(BaseModel):
    runs: Annotated[list[TrackedRun], Field(max_length=_RUNS)] = []


class _Created(BaseModel):
    run: TrackedRun


class _ExperimentId(BaseModel):
    experiment_id: Id


class _Experiment(BaseModel):
    experiment: _ExperimentId


class _Nothing(BaseModel):
    pass


class _Problem(BaseModel):
    """An error of the server's; others answer errors of other forms."""

    error_code: str = ""
    message: str = ""


class Metric(NamedTuple):
    """A figure of a step."""

    key: str
    value: float
    timestamp: int
    """Milliseconds."""
    step: int


@dataclass(frozen=True)
class MlflowClient:
    """A server's API. Each method raises what `HttpServer.request` raises, and what `_error` describes."""

    server: HttpServer

    def experiment_id(self, name: str) -> str:
        """The experiment of this name, which is created if there is none."""
        return self._find_experiment(name) or self._create_experiment(name)

    def runs_of(self, experiment_id: str, uid: str) -> list[TrackedRun]:
        """The runs that have been made for the run of this uid: more than one, if two operators were at work at once."""
        asked = {"experiment_ids": [experiment_id], "filter": f"tags.`fedpipe.uid` = '{uid}'", "max_results": _RUNS}
        found = self._post("/runs/search", asked, _Runs).runs
        return sorted((one for one in found if one.tags.get("fedpipe.uid") == uid), key=lambda one: one.info.run_id)

    def create_run(self, experiment_id: str, name: str, started_at: int, tags: Mapping[str, str]) -> TrackedRun:
        """A new run. `started_at` in milliseconds."""
        body = {"experiment_id": experiment_id, "run_name": name, "start_time": started_at, "tags": _pairs(tags)}
        return self._post("/runs/create", body, _Created).run

    def delete_run(self, run_id: str) -> None:
        """Move a run to the server's bin."""
        self._post("/runs/delete", {"run_id": run_id}, _Nothing)

    def log_batch(self, run_id: str, metrics: Iterable[Metric], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log all of this: at most 1000 together, and of the parameters and of the tags at most 100."""
        body = {"run_id": run_id, "metrics": [one._asdict() for one in metrics], "params": _pairs(params), "tags": _pairs(tags)}
        self._post("/runs/log-batch", body, _Nothing)

    def end_run(self, run_id: str, status: str, ended_at: int) -> None:
        """Say how a run ended. `ended_at` in milliseconds."""
        self._post("/runs/update", {"run_id": run_id, "status": status, "end_time": ended_at}, _Nothing)

    def write_artifact(self, path: str, content: bytes) -> None:
        """Write a file, or write it anew."""
        target = f"{_ARTIFACTS}/{quote(path)}"
        answer = self.server.request("PUT", target, content, "application/octet-stream")
        if answer.status != _OK:
            raise self._error(target, answer)

    def _find_experiment(self, name: str) -> str | None:
        path = f"{_API}/experiments/get-by-name?experiment_name={quote(name, safe='')}"
        answer = self.server.request("GET", path)
        if answer.status != _OK and _problem(answer).error_code == _NOT_FOUND:
            return None
        return self._parsed(path, answer, _Experiment).experiment.experiment_id

    def _create_experiment(self, name: str) -> str:
        path = f"{_API}/experiments/create"
        answer = self.server.request("POST", path, json.dumps({"name": name}).encode())
        if answer.status != _OK and _problem(answer).error_code == _EXISTS:  # another run's operator was faster
            found = self._find_experiment(name)
            if found is not None:
                return found
        return self._parsed(path, answer, _ExperimentId).experiment_id

    def _post(self, path: str, body: Mapping[str, Any], kind: type[Parsed]) -> Parsed:
        return self._parsed(f"{_API}{path}", self.server.request("POST", f"{_API}{path}", json.dumps(body).encode()), kind)

    def _parsed(self, path: str, answer: Answer, kind: type[Parsed]) -> Parsed:
        if answer.status != _OK:
            raise self._error(path, answer)
        if (found := _read(answer, kind)) is not None:
            return found
        what = f"{self.server.url} does not answer as MLflow does to {path.partition('?')[0]}"
        raise UserError("TrackerRefused", f"{what}; correct spec.tracking.mlflow.trackingUri")

    def _error(self, path: str, answer: Answer) -> FedPipeError:
        """`TrackerDenied`, `TrackerUnavailable`, `TrackerRefused`."""
        problem = _problem(answer)
        words = f": {shown_words(problem.message)} ({shown_words(problem.error_code)})" if problem.error_code else ""
        what = f"{self.server.url}{path.partition('?')[0]} answers {answer.status}{words}"
        if answer.status in _DENIED:
            advice = "check the Secret of spec.tracking.mlflow.credentialsSecretRef, and which hosts the server allows"
            return UserError("TrackerDenied", f"{what}; {advice}")
        if answer.status in _LATER:
            return TransientError("TrackerUnavailable", f"{what}; the server may recover")
        if answer.status in _REDIRECTS:
            return UserError("TrackerRefused", f"{what}, a redirect, which is not followed; name the URL that it leads to")
        return UserError("TrackerRefused", f"{what}; check spec.tracking.mlflow: is it an MLflow server, and the experiment not deleted?")


def _problem(answer: Answer) -> _Problem:
    return _read(answer, _Problem) or _Problem()


def _read(answer: Answer, kind: type[Parsed]) -> Parsed | None:
    """The answer as a value of this kind; None if it is none, or has more values than any of MLflow: counted before any is made."""
    if 1 + sum(map(answer.body.count, (b",", b"[", b"{"))) > _VALUES:
        return None
    try:
        return kind.model_validate_json(answer.body)
    except ValidationError:
        return None


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]

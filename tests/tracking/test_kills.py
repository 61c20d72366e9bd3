"""Whatever is killed or lost, and wherever: a tracker has every round once. The stand-in for the server appends what it is told twice."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from mlflow_servers import StandInMlflow
from stand_in_runs import World, a_run

from fedpipe_operator.errors import FedPipeError, TransientError
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import DirectoryStore
from fedpipe_operator.tracking import tensorboard
from fedpipe_operator.tracking.write import Work, write_trackers

REQUESTS = 14
"""Of a run of two rounds whose adapter has a model card."""


def tracked(run: Run, uri: str = "", *, tensorboard: bool = False) -> Run:
    spec = {"tensorboard": tensorboard} | ({"mlflow": {"trackingUri": uri}} if uri else {})
    resource = run.resource.model_copy(update={"spec": a_run(tracking=spec).spec})
    return Run(resource, run.sites)


def to_mlflow(world: World, server: StandInMlflow) -> str:
    return write_trackers(Work(tracked(world.run, server.url), world.store, "s3://fedpipe/runs"))


def test_a_run_is_written_with_its_rounds_parameters_tags_and_artefacts(ended: World, server: StandInMlflow) -> None:
    where = to_mlflow(ended, server)

    (run,) = server.live_runs
    assert where == f"MLflow: {server.url}/#/experiments/1/runs/run0"
    assert list(server.experiments) == ["fedpipe"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("toy", "FINISHED")
    assert {step for _, step in server.metrics()} == {0, 1, 2}
    assert ("site/site-b/train_loss", 2) in server.metrics()
    assert run["params"]["aggregation.method"] == "Exact"
    assert server.tags()["fedpipe.store"] == "s3://fedpipe/runs"
    assert [path.partition("artifacts/")[2] for path in server.artifacts] == [
        "plans/round-0001.json",
        "plans/round-0002.json",
        "model-card.md",
    ]
    assert server.artifacts["1/run0/artifacts/model-card.md"] == [b"# A model"]
    assert server.requests == REQUESTS


def test_what_is_written_is_not_written_again(ended: World, server: StandInMlflow) -> None:
    to_mlflow(ended, server)
    metrics, artifacts = server.metrics(), {path: len(contents) for path, contents in server.artifacts.items()}
    before = server.requests

    to_mlflow(ended, server)

    assert server.metrics() == metrics
    assert {path: len(contents) for path, contents in server.artifacts.items()} == artifacts
    assert server.requests - before == 2, "the experiment and the run are looked for"


@pytest.mark.parametrize("performs_lost", [False, True], ids=["before the server has it", "before its answer arrives"])
@pytest.mark.parametrize("request_", range(REQUESTS))
def test_an_operator_that_is_killed_at_any_request_writes_no_round_twice_and_misses_none(
    ended: World, server: StandInMlflow, request_: int, performs_lost: bool
) -> None:
    server.loses, server.performs_lost = request_, performs_lost
    with pytest.raises(TransientError, match="TrackerUnreachable"):
        to_mlflow(ended, server)
    to_mlflow(ended, server)

    counted = Counter(server.metrics())
    assert set(counted.values()) == {1}
    assert {step for _, step in counted} == {0, 1, 2}
    assert len(server.live_runs) == 1
    assert server.live_runs[0]["info"]["status"] == "FINISHED"
    assert server.tags()["fedpipe.artifacts"] == str(len(server.artifacts))


def test_of_two_runs_that_two_operators_made_at_once_one_is_left_with_every_round(ended: World, server: StandInMlflow) -> None:
    to_mlflow(ended, server)
    other = {"info": {**server.runs["run0"]["info"], "run_id": "run1"}, "tags": server.tags(), "experiment": "1"}
    server.runs["run1"] = {**other, "params": {}, "metrics": [], "deleted": False}

    to_mlflow(ended, server)

    assert [run["info"]["run_id"] for run in server.live_runs] == ["run0"]


def test_rounds_are_written_as_they_are_finished(tmp_path: Path, server: StandInMlflow) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("train-r1")
    assert to_mlflow(world, server)
    steps = [{step for _, step in server.metrics()}]
    world.settle()
    to_mlflow(world, server)

    assert [*steps, {step for _, step in server.metrics()}] == [set(), {0, 1, 2}]


def test_before_the_first_plan_there_is_nothing_to_write(tmp_path: Path, server: StandInMlflow) -> None:
    assert to_mlflow(World(a_run(), tmp_path), server) == ""
    assert server.requests == 0


def test_a_parameter_that_was_edited_meanwhile_does_not_keep_the_rounds_out(ended: World, server: StandInMlflow) -> None:
    server.loses = 5  # the run is made, and its first round with the parameters is logged, when the operator is killed
    with pytest.raises(TransientError):
        to_mlflow(ended, server)
    edited = ended.run.resource.model_copy(
        update={"spec": a_run(rounds={"count": 7}, tracking={"mlflow": {"trackingUri": server.url}}).spec}
    )
    write_trackers(Work(Run(edited, ended.run.sites), ended.store, "s3://fedpipe/runs"))

    assert server.live_runs[0]["params"]["rounds.count"] == "2"
    assert {step for _, step in server.metrics()} == {0, 1, 2}


def test_a_server_that_takes_no_artefacts_gets_all_else(ended: World, server: StandInMlflow) -> None:
    server.artifact_root = "s3://elsewhere/"
    to_mlflow(ended, server)

    assert server.artifacts == {}
    assert {step for _, step in server.metrics()} == {0, 1, 2}


@pytest.mark.parametrize(
    "root", ["mlflow-artifacts://evil:80/", "mlflow-artifacts:/../../etc/", "http://evil/api/2.0/mlflow-artifacts/artifacts/"]
)
def test_a_server_cannot_have_artefacts_sent_elsewhere(ended: World, server: StandInMlflow, root: str) -> None:
    server.artifact_root = root
    to_mlflow(ended, server)

    assert server.artifacts == {}


class Killed(BaseException):
    """No error that anything handles."""


class DyingStore(DirectoryStore):
    """A folder whose writer is killed at its n-th write, before it or after it."""

    writes = 0
    dies_at = -1
    is_after = False

    def write(self, key: str, data: bytes) -> None:
        number, self.writes = self.writes, self.writes + 1
        if number != self.dies_at or self.is_after:
            super().write(key, data)
        if number == self.dies_at:
            raise Killed


def event_files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted((folder / "tensorboard").rglob("*.fedpipe"))}


def copied(world: World, folder: Path) -> Path:
    return Path(shutil.copytree(world.folder / "store", folder / "store"))


@pytest.mark.parametrize("is_after", [False, True], ids=["before the file", "after it"])
@pytest.mark.parametrize("write", range(4))
def test_event_files_have_the_same_bytes_wherever_their_writer_is_killed(ended: World, tmp_path: Path, write: int, is_after: bool) -> None:
    undisturbed, disturbed = copied(ended, tmp_path / "undisturbed"), copied(ended, tmp_path / "disturbed")
    run = tracked(ended.run, tensorboard=True)
    write_trackers(Work(run, DirectoryStore(undisturbed), str(undisturbed)))
    for number in (2, 1):  # as if the rounds were finished one by one
        (disturbed / "rounds" / f"000{number}" / "evaluation.json").rename(tmp_path / f"{number}")
    for number in (0, 1, 2):
        if number:
            (tmp_path / f"{number}").rename(disturbed / "rounds" / f"000{number}" / "evaluation.json")
        store = DyingStore(disturbed)
        store.dies_at, store.is_after = write, is_after
        with pytest.raises(Killed):
            write_trackers(Work(run, store, str(disturbed)))
    write_trackers(Work(run, DirectoryStore(disturbed), str(disturbed)))

    assert len(event_files_in(undisturbed)) == 4
    assert event_files_in(disturbed) == event_files_in(undisturbed)


def test_event_files_are_the_same_however_many_rounds_are_written_at_once(
    ended: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, one_by_one = copied(ended, tmp_path / "at-once"), copied(ended, tmp_path / "one-by-one")
    run = tracked(ended.run, tensorboard=True)
    write_trackers(Work(run, DirectoryStore(at_once), str(at_once)))
    monkeypatch.setattr(tensorboard, "_ROUNDS_AT_ONCE", 1)
    store = DyingStore(one_by_one)
    write_trackers(Work(run, store, str(one_by_one)))

    assert store.writes == 3 * 4
    assert event_files_in(one_by_one) == event_files_in(at_once)


def test_event_files_that_were_deleted_or_damaged_are_written_anew(ended: World, tmp_path: Path) -> None:
    folder = copied(ended, tmp_path)
    work = Work(tracked(ended.run, tensorboard=True), DirectoryStore(folder), str(folder))
    write_trackers(work)
    whole = event_files_in(folder)
    (folder / "tensorboard" / "federated" / "events.out.tfevents.0000000001.fedpipe").write_bytes(b"damaged")
    for site in ("site-a", "site-b"):
        shutil.rmtree(folder / "tensorboard" / "sites" / site)

    assert write_trackers(work) == f"event files in {folder}/tensorboard"
    assert event_files_in(folder) == whole


def test_a_tracker_that_fails_does_not_keep_the_other_from_being_written(ended: World, tmp_path: Path, server: StandInMlflow) -> None:
    folder, server.is_gone = copied(ended, tmp_path), True

    with pytest.raises(FedPipeError, match="TrackerUnreachable"):
        write_trackers(Work(tracked(ended.run, server.url, tensorboard=True), DirectoryStore(folder), str(folder)))
    assert len(event_files_in(folder)) == 4

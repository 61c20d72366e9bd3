"""How a run on a cluster looks to people and tools: its progress advances, its columns, `kubectl wait`, and the operator's log."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest
from cluster_user import FFT, Plain, condition
from fleet_namespace import FleetNamespace, OpenNamespace, is_finished, store_credentials
from health import is_met, kstatus
from local_runs import MANUAL

from fedpipe_operator import names
from fedpipe_trainer.contract import TaskProgress

pytestmark = pytest.mark.e2e

STEPS: Final = 30_000
"""Of the toy model: minutes, so that several reconciles see the training; the deadline ends it if the machine is busy."""
LONG: Final = {
    "rounds": {"count": 1, "deadline": "3m"},
    "planning": MANUAL | {"plans": [{"bits": 32, "rank": 4, "steps": STEPS}]},
    "training": {"learningRate": 1e-5},
}
SITES: Final = ("north", "south")


@dataclass(frozen=True)
class Watched:
    """A run that was watched from its creation to its end."""

    namespace: FleetNamespace
    seen: list[Plain]
    """Its status whenever it had changed, the last one at its end."""
    written: list[TaskProgress]
    """What a trainer had written of its progress then."""

    @property
    def run(self) -> Plain:
        """The run as it is now."""
        return self.namespace.get_run()


@pytest.fixture(scope="module")
def watched(open_namespace: OpenNamespace) -> Iterator[Watched]:
    """A run of one long round."""
    with open_namespace("e2e-health") as namespace:
        namespace.start(*SITES, **LONG)
        found = Watched(namespace, [], [])
        namespace.wait("toy has ended", lambda: has_ended(found), seconds=540)
        yield found


def has_ended(watched: Watched) -> bool:
    run = watched.run
    status = run.get("status", {})
    if not watched.seen or status != watched.seen[-1]:
        watched.seen.append(status)
        data = watched.namespace.store_of(run).read(names.progress_beside(names.update_result(1, "north", 0)))
        watched.written.extend([TaskProgress.model_validate_json(data)] if data else [])
    return is_finished(run)


def test_the_percentage_advances_through_all_stages_to_100(watched: Watched) -> None:
    assert condition(watched.run, "Complete").get("status") == "True", watched.namespace.explain()
    found = [status["progress"] for status in watched.seen if "progress" in status]
    percentages = [one["percentage"] for one in found]

    assert percentages == sorted(percentages)
    assert {one["stage"] for one in found} >= {"Profiling", "Training", "Complete"}
    assert {key: found[-1][key] for key in ("percentage", "estimatedRemainingSeconds", "sitesDone", "sitesTotal")} == {
        "percentage": 100,
        "estimatedRemainingSeconds": 0,
        "sitesDone": 2,
        "sitesTotal": 2,
    }


def test_the_progress_within_a_training_is_that_of_its_steps(watched: Watched) -> None:
    training = [status["progress"] for status in watched.seen if status.get("progress", {}).get("stage") == "Training"]
    alone = [one for one in training if one["sitesDone"] == 0]

    assert {one.phase for one in watched.written} >= {"train"}
    assert max(one.step for one in watched.written) > STEPS / 100
    assert len({one["percentage"] for one in alone}) > 1, f"before a site is done, the percentage advances: {training}"
    assert all(one["estimatedRemainingSeconds"] > 0 for one in alone)


def test_kubectl_get_shows_the_columns(watched: Watched) -> None:
    header, row = (line.split() for line in watched.namespace.kubectl("get", FFT, "toy").splitlines())
    wide = watched.namespace.kubectl("get", FFT, "toy", "-o", "wide").splitlines()[0].split()

    assert header == ["NAME", "READY", "REASON", "ROUND", "PROGRESS", "UPDATES", "METRIC", "AGE"]
    assert row[:6] == ["toy", "True", "RoundsCompleted", "1", "100", "2/2"]
    assert {"STAGE", "REMAINING"} <= set(wide)


def test_kubectl_wait_and_kstatus_say_that_it_is_complete(watched: Watched) -> None:
    printed = watched.namespace.kubectl("wait", "--for=condition=Complete", "fft/toy", "--timeout=10s")
    under_way = [status for status in watched.seen if status.get("progress", {}).get("stage") == "Training"]

    assert "condition met" in printed
    assert (is_met(watched.run, "Complete"), kstatus(watched.run)) == (True, "Current")
    assert {kstatus(watched.run | {"status": status}) for status in under_way} == {"InProgress"}


STAGES: Final = [
    *(2 * ["profile received"]),
    "2 sites profiled",
    "round 1 planned for 2 sites; it needs 2 updates",
    "export tried",
    "training of round 1 started at 2 sites",
    *(2 * ["update received"]),
    "round 1 aggregated: 2 updates",
    "exported",
    "complete: RoundsCompleted: after round 1",
]


def test_the_log_has_one_line_at_each_stage_and_no_url_with_a_query(watched: Watched) -> None:
    operator = watched.namespace.operator.kubectl
    log = operator("logs", "--selector=app.kubernetes.io/name=fedpipe,app.kubernetes.io/instance=fedpipe", "--tail=-1")
    lines = [line for line in log.splitlines() if f"namespace={watched.namespace.name} run=toy " in line]
    messages = [re.sub(r"^\S+ \S+\s+", "", line).split(" |")[0] for line in lines]

    assert [one for one in messages if one in STAGES] == STAGES
    assert [
        len([one for one in messages if one.startswith(f"{subject} evaluated by 2 sites: accuracy")]) for subject in ("the base", "round 1")
    ] == [1, 1]
    assert len(messages) == len(STAGES) + 2, f"nothing else is told of a healthy run: {messages}"
    assert all(re.search(r" uid=[-0-9a-f]{36} .*reconcile=[0-9a-f]{12}$", line) for line in lines)
    assert all(re.search(rf" round=1 site=({'|'.join(SITES)}) attempt=0 ", line) for line in lines if "update received" in line)
    assert not re.search(r"X-Amz|x-amz|\?[A-Za-z-]+=", log)
    assert store_credentials().secret_key not in log

"""A run deleted in whatever phase leaves no Job, no Secret and no pod; in the store, what its spec says."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import pytest
from cluster_user import FFT, Kubectl, Plain
from installed_operator import namespace
from wards import Ward, WardCalled

pytestmark = pytest.mark.e2e

PHASES: Final = {
    "profiling": "Profiling",
    "evaluating": "Evaluating",
    "training": "Training",
    "aggregating": "Aggregating",
    "exporting": "Exporting",
    "suspended": "SuspendedBySpec",
}
RETAINED: Final = ("aggregating",)
"""Phases of the runs whose objects in the store shall stay. The quick start's run is deleted when it has finished."""
REASON: Final = '{.status.conditions[?(@.type=="Ready")].reason}'
ONE_ROUND: Final = {"count": 1}


class Deleted(NamedTuple):
    """A run that was deleted, as it was just before."""

    run: Plain
    ward: Ward


def spec_of(phase: str) -> Plain:
    policy = "Retain" if phase in RETAINED else "Delete"
    return {"deletionPolicy": policy, "rounds": ONE_ROUND, "export": {"adapter": phase == "exporting", "merged": False}}


def await_reason(kubectl: Kubectl, run: str, reason: str) -> None:
    """By a watch, which misses no phase however short it is."""
    kubectl("wait", f"{FFT}/{run}", f"--for=jsonpath={REASON}={reason}", "--timeout=900s")


def delete_in(phase: str, ward: Ward) -> Deleted:
    if phase == "suspended":
        await_reason(ward.kubectl, phase, "Evaluating")
        ward.change(phase, suspend=True)
    await_reason(ward.kubectl, phase, PHASES[phase])
    run = ward.look(phase)
    ward.kubectl("delete", FFT, phase, "--timeout=180s")
    return Deleted(run, ward)


@pytest.fixture(scope="module")
def deletions(ward_called: WardCalled) -> Iterator[dict[str, "Future[Deleted]"]]:
    """A run for each phase, side by side at one site, each deleted when it gets there."""
    with ward_called("e2e-deletion") as ward, ThreadPoolExecutor(len(PHASES)) as threads:
        site = ward.site("north", nodeSelector={}, maxConcurrentJobs=len(PHASES), capacity={"memory": "1500Mi"})
        ward.kubectl.apply(site, *(ward.run(phase, **spec_of(phase)) for phase in PHASES))
        yield {phase: threads.submit(delete_in, phase, ward) for phase in PHASES}


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_deleted_in_any_phase_leaves_nothing_behind(phase: str, deletions: "dict[str, Future[Deleted]]") -> None:
    run, ward = deletions[phase].result()

    ward.wait(f"nothing is left of {phase}", lambda: ward.left_of(run) == [])
    kept = ward.store_of(run).list()
    assert (kept != []) == (phase in RETAINED), kept


def test_a_namespace_goes_whole_though_a_secret_went_before_a_run_whose_results_should_go(ward: Ward) -> None:
    going = Kubectl("e2e-going")
    run = ward.run(deletionPolicy="Delete")
    run["spec"]["store"] |= {"credentialsSecretRef": {"name": "gone"}}
    going.apply(namespace(going.namespace), run)
    await_reason(going, "toy", "SecretMissing")
    assert going.get(FFT, "toy")["metadata"]["finalizers"]

    going("delete", "namespace", going.namespace, "--timeout=120s")

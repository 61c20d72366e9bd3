"""A run deleted in any phase leaves no Job, Secret or pod; what stays in the store is what its spec says."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import pytest
from cluster_user import FFT, Kubectl, Plain
from fleet_namespace import FleetNamespace, OpenNamespace
from installed_operator import namespace_manifest

pytestmark = pytest.mark.e2e

PHASES: Final = {
    "profiling": "Profiling",
    "training": "Training",
    "aggregating": "Aggregating",
    "evaluating": "Evaluating",
    "exporting": "Exporting",
    "suspended": "SuspendedBySpec",
}
RETAINED: Final = ("aggregating",)
"""Phases of the runs whose objects in the store are retained. The quick start's test deletes a finished run."""
REASON: Final = '{.status.conditions[?(@.type=="Ready")].reason}'
ONE_ROUND: Final = {"count": 1}


class Deleted(NamedTuple):
    """A deleted run, as it was just before its deletion."""

    run: Plain
    namespace: FleetNamespace


def spec_for(phase: str) -> Plain:
    policy = "Retain" if phase in RETAINED else "Delete"
    return {"deletionPolicy": policy, "rounds": ONE_ROUND, "export": {"adapter": phase == "exporting", "merged": False}}


def await_reason(kubectl: Kubectl, run: str, reason: str) -> None:
    """Wait by a watch, which misses no phase however short."""
    kubectl("wait", f"{FFT}/{run}", f"--for=jsonpath={REASON}={reason}", "--timeout=900s")


def delete_in(phase: str, namespace: FleetNamespace) -> Deleted:
    if phase == "suspended":
        await_reason(namespace.kubectl, phase, "Training")
        namespace.patch_run(phase, suspend=True)
    await_reason(namespace.kubectl, phase, PHASES[phase])
    run = namespace.get_run(phase)
    namespace.kubectl("delete", FFT, phase, "--timeout=180s")
    return Deleted(run, namespace)


@pytest.fixture(scope="module")
def deletions(open_namespace: OpenNamespace) -> Iterator[dict[str, "Future[Deleted]"]]:
    """One run for each phase, all at one site at the same time, each deleted when it reaches its phase."""
    with open_namespace("e2e-deletion") as namespace, ThreadPoolExecutor(len(PHASES)) as threads:
        site = namespace.site("north", nodeSelector={}, maxConcurrentJobs=len(PHASES), capacity={"cpu": 1, "memory": "1500Mi"})
        namespace.kubectl.apply(site, *(namespace.run(phase, **spec_for(phase)) for phase in PHASES))
        yield {phase: threads.submit(delete_in, phase, namespace) for phase in PHASES}


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_deleted_in_any_phase_leaves_nothing_behind(phase: str, deletions: "dict[str, Future[Deleted]]") -> None:
    run, namespace = deletions[phase].result()

    namespace.wait(f"nothing is left of {phase}", lambda: namespace.remaining_objects(run) == [])
    remaining = namespace.store_of(run).list()
    assert (remaining != []) == (phase in RETAINED), remaining


def test_a_namespace_is_deleted_even_if_the_credentials_go_before_a_run_with_deletion_policy_delete(namespace: FleetNamespace) -> None:
    deleted = Kubectl("e2e-deleted-namespace")
    run = namespace.run(deletionPolicy="Delete")
    run["spec"]["store"] |= {"credentialsSecretRef": {"name": "no-such-secret"}}
    deleted.apply(namespace_manifest(deleted.namespace), run)
    await_reason(deleted, "toy", "SecretMissing")
    assert deleted.get(FFT, "toy")["metadata"]["finalizers"]

    deleted("delete", "namespace", deleted.namespace, "--timeout=120s")

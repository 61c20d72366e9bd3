"""Which processors the process of a site may use, and how many sites are active at once."""

import subprocess
import sys

from fedpipe_operator.backend import Job, JobResources, TaskKind
from fedpipe_operator.local.children import Child, least_loaded
from fedpipe_operator.local.scheduling import Assign, Evict, MachineLimits, Spawn, next_decision


def test_sites_that_are_active_at_once_get_different_processors() -> None:
    first = least_loaded({0, 1, 2, 3}, [], 2)
    second = least_loaded({0, 1, 2, 3}, [first], 2)

    assert first == {0, 1}
    assert second == {2, 3}


def test_when_all_are_used_the_least_loaded_are_shared() -> None:
    assert least_loaded({0, 1, 2}, [frozenset({0, 1}), frozenset({2}), frozenset({0})], 1) == {1}


def test_a_site_without_a_claim_may_use_all_processors() -> None:
    assert least_loaded({0, 5}, [frozenset({0})], None) == {0, 5}


def test_a_site_that_claims_more_than_there_are_gets_all() -> None:
    assert least_loaded({0, 1}, [], 64) == {0, 1}


def test_sites_are_active_at_once_only_if_their_claimed_processors_fit() -> None:
    waiting = [(Job("wide", TaskKind.TRAIN, "a"), JobResources(cpus=2)), (Job("narrow", TaskKind.TRAIN, "b"), JobResources(cpus=1))]
    active = {"c": a_child("c", cpus=1)}

    assert next_decision(waiting, active, MachineLimits(max_concurrent=2, processors=2)) == Spawn("narrow", "b")
    assert next_decision(waiting, active, MachineLimits(max_concurrent=2, processors=3)) == Spawn("wide", "a")
    assert next_decision(waiting, active, MachineLimits(max_concurrent=1, processors=9)) is None


def test_a_site_that_claims_more_processors_than_there_are_runs_only_when_no_other_does() -> None:
    waiting = [(Job("huge", TaskKind.TRAIN, "a"), JobResources(cpus=64))]

    assert next_decision(waiting, {}, MachineLimits(max_concurrent=2, processors=2)) == Spawn("huge", "a")
    assert next_decision(waiting, {"c": a_child("c", cpus=1)}, MachineLimits(max_concurrent=2, processors=2)) is None


def test_an_idle_process_uses_no_processor_and_is_assigned_its_sites_next_job() -> None:
    idle = a_child("a", cpus=2)
    idle.job = None

    assert next_decision([(Job("next", TaskKind.TRAIN, "a"), JobResources(cpus=2))], {"a": idle}, MachineLimits(1, 2)) == Assign(
        "next", "a"
    )


def test_a_task_that_is_expected_to_use_another_amount_of_memory_keeps_the_process_of_its_site() -> None:
    idle = a_child("a", cpus=1)
    idle.job = None
    training = JobResources(cpus=1, expected_bytes=2**30)

    assert next_decision([(Job("train", TaskKind.TRAIN, "a"), training)], {"a": idle}, MachineLimits(1, 2)) == Assign("train", "a")


def test_a_task_with_another_limit_of_memory_or_processors_replaces_the_process_of_its_site() -> None:
    idle = a_child("a", cpus=1)
    idle.job = None
    for resources in (JobResources(cpus=2), JobResources(cpus=1, memory_bytes=2**30)):
        assert next_decision([(Job("train", TaskKind.TRAIN, "a"), resources)], {"a": idle}, MachineLimits(1, 2)) == Evict("a")


def a_child(slot: str, *, cpus: int) -> Child:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Child(slot=slot, process=process, resources=JobResources(cpus=cpus), serves=True, group=None, job="active")

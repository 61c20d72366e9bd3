"""Which processors a site's process may use."""

import subprocess
import sys

from fedpipe_operator.backend import Job, Limits, TaskKind
from fedpipe_operator.local.children import Child, least_used
from fedpipe_operator.local.scheduling import Give, Room, Spawn, next_turn


def test_sites_at_work_side_by_side_get_processors_of_their_own() -> None:
    first = least_used({0, 1, 2, 3}, [], 2)
    second = least_used({0, 1, 2, 3}, [first], 2)

    assert first == {0, 1}
    assert second == {2, 3}


def test_when_all_are_taken_the_least_used_are_shared() -> None:
    assert least_used({0, 1, 2}, [frozenset({0, 1}), frozenset({2}), frozenset({0})], 1) == {1}


def test_a_site_without_a_number_of_processors_may_use_all_of_ours() -> None:
    assert least_used({0, 5}, [frozenset({0})], None) == {0, 5}


def test_a_site_that_claims_more_than_there_are_gets_all() -> None:
    assert least_used({0, 1}, [], 64) == {0, 1}


def test_sites_share_a_machine_only_as_far_as_their_processors_fit() -> None:
    waiting = [(Job("wide", TaskKind.TRAIN, "a"), Limits(cpus=2)), (Job("narrow", TaskKind.TRAIN, "b"), Limits(cpus=1))]
    at_work = {"c": a_child("c", cpus=1)}

    assert next_turn(waiting, at_work, Room(max_concurrent=2, processors=2)) == Spawn("narrow", "b")
    assert next_turn(waiting, at_work, Room(max_concurrent=2, processors=3)) == Spawn("wide", "a")
    assert next_turn(waiting, at_work, Room(max_concurrent=1, processors=9)) is None


def test_a_site_that_claims_more_processors_than_there_are_works_alone() -> None:
    waiting = [(Job("huge", TaskKind.TRAIN, "a"), Limits(cpus=64))]

    assert next_turn(waiting, {}, Room(max_concurrent=2, processors=2)) == Spawn("huge", "a")
    assert next_turn(waiting, {"c": a_child("c", cpus=1)}, Room(max_concurrent=2, processors=2)) is None


def test_an_idle_process_takes_no_processor_and_does_its_sites_next_job() -> None:
    idle = a_child("a", cpus=2)
    idle.job = None

    assert next_turn([(Job("next", TaskKind.TRAIN, "a"), Limits(cpus=2))], {"a": idle}, Room(1, 2)) == Give("next", "a")


def a_child(place: str, *, cpus: int) -> Child:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Child(place=place, process=process, limits=Limits(cpus=cpus), serves=True, group=None, job="at-work")

"""The objects at one moment, as other threads get them."""

from cached_objects import a_body, a_cache, a_job

from fedpipe_operator.cluster.objects import NamespacedName
from fedpipe_operator.handlers.fleet import JobNumbers, fleet_of


def test_jobs_that_have_not_ended_are_counted_by_site_and_by_whether_their_pod_is_ready() -> None:
    north = [a_job("one", "north", ready=1), a_job("two", "north"), a_job("three", "north", ended="Complete")]
    cache = a_cache(jobs_at_sites={("wards", "north"): north, ("wards", "south"): [a_job("one", "south", given_up=True)]})

    assert fleet_of(cache).jobs == {NamespacedName("wards", "north"): JobNumbers(pending=1, running=1)}


def test_of_each_name_the_newest_object_is_taken_beside_one_that_was_deleted() -> None:
    old, new = a_body("toy", resourceVersion="9"), a_body("toy", resourceVersion="10")
    fleet = fleet_of(
        a_cache(run_bodies={("wards", "toy"): [new, old]}, site_bodies={("wards", "ward"): [a_body("ward")], ("wards", "x"): []})
    )

    assert fleet.runs == (new,)
    assert [body["metadata"]["name"] for body in fleet.sites] == ["ward"]


def test_what_was_taken_does_not_change_with_the_cache() -> None:
    bodies = {("wards", "toy"): [a_body("toy")]}
    fleet = fleet_of(a_cache(run_bodies=bodies))
    bodies.clear()

    assert len(fleet.runs) == 1


def test_a_run_that_another_controller_manages_is_none_of_the_fleet() -> None:
    specs = {"theirs": {"managedBy": "example.com/other"}, "ours": {"managedBy": "fedpipe.io/operator"}, "unnamed": {}}
    bodies = {("wards", name): [a_body(name, spec=spec)] for name, spec in specs.items()}

    assert [body["metadata"]["name"] for body in fleet_of(a_cache(run_bodies=bodies)).runs] == ["ours", "unnamed"]

"""What is found in the keys that a store listed, and the names of what a run creates."""

import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_operator import names
from fedpipe_operator.names import Listing

KEYS = Listing(
    frozenset(
        {
            names.profile_result("north", 0),
            names.profile_probe("north", 1),
            names.round_plan(1),
            names.round_evaluation(0),
            names.checkpoint(1, "0"),
            names.update_adapter(1, "north", 2),
            *(names.update_result(1, "north", attempt) for attempt in (10, 2, 0)),
            names.update_result(1, "7", 3),
            names.update_verdict(1, "north", 2),
            names.evaluation_result(0, "south", 1),
            names.export_result(4),
        }
    )
)


@pytest.mark.parametrize(
    ("key_of", "attempts"),
    [
        (partial(names.update_result, 1, "north"), (0, 2, 10)),
        (partial(names.update_adapter, 1, "north"), (2,)),
        (partial(names.update_verdict, 1, "north"), (2,)),
        (partial(names.update_result, 1, "7"), (3,)),
        (partial(names.update_result, 1, "0"), ()),
        (partial(names.update_result, 2, "north"), ()),
        (partial(names.evaluation_result, 0, "south"), (1,)),
        (partial(names.profile_result, "north"), (0,)),
        (names.export_result, (4,)),
    ],
)
def test_the_attempts_of_a_key_are_those_that_were_listed(key_of: partial[str], attempts: tuple[int, ...]) -> None:
    assert KEYS.attempts(key_of) == attempts


def test_rounds_and_sites_are_those_with_a_folder() -> None:
    assert KEYS.rounds() == [0, 1]
    assert KEYS.sites(f"{names.round_folder(1)}/updates") == ["0", "7", "north"]
    assert KEYS.sites("profile") == ["north"]


def test_a_round_is_never_taken_for_an_attempt() -> None:
    assert Listing(frozenset({names.round_plan(1)})).attempts(lambda attempt: f"rounds/{attempt}/plan.json") == ()


SOMEBODYS_NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
IDENTITIES = st.tuples(
    st.uuids().map(str),
    SOMEBODYS_NAMES,
    st.sampled_from(["profile", "train", "evaluate", "export", "aggregate"]),
    SOMEBODYS_NAMES | st.just(""),
    st.integers(0, 99),
    st.integers(0, 9),
)


Identity = tuple[str, str, str, str, int, int]


def object_of(identity: Identity) -> str:
    uid, run, kind, site, round_, attempt = identity
    return names.job_object(uid, names.job(run, kind, site=site, round_=round_, attempt=attempt), kind, site, round_, attempt)


@given(IDENTITIES)
def test_the_name_of_a_job_is_one_that_kubernetes_takes(identity: Identity) -> None:
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", object_of(identity))


@given(st.lists(IDENTITIES, min_size=2, unique=True))
def test_two_jobs_never_share_a_name(identities: list[Identity]) -> None:
    assert len({object_of(identity) for identity in identities}) == len(identities)


def test_parts_that_read_the_same_side_by_side_are_different_jobs() -> None:
    assert object_of(("1", "a-profile", "profile", "b", 0, 0)) != object_of(("1", "a", "profile", "profile-b", 0, 0))
    assert object_of(("1", "a", "evaluate", "r1-b", 0, 0)) != object_of(("1", "a", "evaluate", "b", 1, 0))
    assert object_of(("1", "a", "train", "b", 1, 0)) != object_of(("2", "a", "train", "b", 1, 0))

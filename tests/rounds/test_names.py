"""What is found in the keys that a store listed."""

from functools import partial

import pytest

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

"""Waiting through a store that does not answer. The clock is the test's own: it moves when somebody waits."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.local.outages import LONGEST_SECONDS, Outage, after, through_outages

DOWN = TransientError("StoreUnreachable", "bucket fedpipe at http://minio:9000: no connection")


@dataclass
class World:
    """A store that is away for a while, a clock, and a screen."""

    away_until: float
    now: float = 0.0
    asked: int = 0
    waits: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def ask(self) -> str:
        self.asked += 1
        if self.now < self.away_until:
            raise DOWN
        return "answer"

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def patiently(self, call: Callable[[], str] | None = None) -> str:
        return through_outages(call or self.ask, clock=lambda: self.now, wait=self.wait, say=self.told.append)


def test_a_store_that_answers_is_asked_once_and_nothing_is_told() -> None:
    world = World(away_until=0)

    assert world.patiently() == "answer"
    assert (world.asked, world.waits, world.told) == (1, [], [])


def test_an_outage_is_waited_through_with_growing_pauses_and_told_when_it_begins_and_ends() -> None:
    world = World(away_until=100)

    assert world.patiently() == "answer"
    assert world.waits == [1, 2, 4, 8, 16, 30, 30, 30]
    began, ended = world.told
    assert began.startswith("store not reachable since ")
    assert f"waiting ({DOWN})" in began
    assert ended == "the store answers again after 121 s"


def test_an_outage_that_lasts_too_long_ends_with_what_was_wrong_and_what_to_do() -> None:
    world = World(away_until=float("inf"))

    with pytest.raises(UserError) as failure:
        world.patiently()

    assert failure.value.reason == "StoreUnreachable"
    assert "http://minio:9000" in failure.value.message
    assert "waited 10 minutes" in failure.value.message
    assert LONGEST_SECONDS <= world.now < LONGEST_SECONDS + 30
    assert len(world.told) == 1


def test_a_second_outage_has_its_own_patience() -> None:
    world = World(away_until=500)
    world.patiently()
    world.away_until = world.now + 500

    assert world.patiently() == "answer"
    assert len(world.told) == 4


def test_what_only_a_person_can_mend_is_not_waited_for() -> None:
    world = World(away_until=0)

    def denied() -> str:
        raise UserError("StoreDenied", "wrong key")

    with pytest.raises(UserError, match="StoreDenied"):
        world.patiently(denied)
    assert world.waits == []


def test_an_outage_counts_from_its_first_failure() -> None:
    first = after(DOWN, None, now=50.0)
    second = after(DOWN, first, now=51.0)

    assert (first, second) == (Outage(50.0, 1), Outage(50.0, 2))
    with pytest.raises(UserError):
        after(DOWN, second, now=50.0 + LONGEST_SECONDS)

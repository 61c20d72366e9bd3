"""Retries while the store is not reachable. The test has its own clock, which moves only during a wait."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.local.outages import MAX_OUTAGE_SECONDS, Outage, next_outage, retry_through_outages

DOWN = TransientError("StoreUnreachable", "bucket fedpipe at http://minio:9000: no connection")


@dataclass
class World:
    """A store that is not reachable for a while, a clock, and the messages to the user."""

    down_until: float
    now: float = 0.0
    calls: int = 0
    waits: list[float] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)

    def read(self) -> str:
        self.calls += 1
        if self.now < self.down_until:
            raise DOWN
        return "answer"

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def retry(self, call: Callable[[], str] | None = None) -> str:
        return retry_through_outages(call or self.read, clock=lambda: self.now, wait=self.wait, report=self.reported.append)


def test_a_reachable_store_is_called_once_and_nothing_is_reported() -> None:
    world = World(down_until=0)

    assert world.retry() == "answer"
    assert (world.calls, world.waits, world.reported) == (1, [], [])


def test_an_outage_is_retried_with_exponential_backoff_and_reported_when_it_begins_and_ends() -> None:
    world = World(down_until=100)

    assert world.retry() == "answer"
    assert world.waits == [1, 2, 4, 8, 16, 30, 30, 30]
    began, ended = world.reported
    assert began.startswith("store not reachable since ")
    assert f"retrying ({DOWN})" in began
    assert ended == "the store is reachable again after 121 s"


def test_an_outage_that_lasts_too_long_is_an_error_with_cause_and_advice() -> None:
    world = World(down_until=float("inf"))

    with pytest.raises(UserError) as failure:
        world.retry()

    assert failure.value.reason == "StoreUnreachable"
    assert "http://minio:9000" in failure.value.message
    assert "waited 10 minutes" in failure.value.message
    assert MAX_OUTAGE_SECONDS <= world.now < MAX_OUTAGE_SECONDS + 30
    assert len(world.reported) == 1


def test_a_second_outage_has_its_own_time_limit() -> None:
    world = World(down_until=500)
    world.retry()
    world.down_until = world.now + 500

    assert world.retry() == "answer"
    assert len(world.reported) == 4


def test_a_user_error_is_not_retried() -> None:
    world = World(down_until=0)

    def denied() -> str:
        raise UserError("StoreDenied", "wrong key")

    with pytest.raises(UserError, match="StoreDenied"):
        world.retry(denied)
    assert world.waits == []


def test_an_outage_counts_from_its_first_failure() -> None:
    first = next_outage(DOWN, None, now=50.0)
    second = next_outage(DOWN, first, now=51.0)

    assert (first, second) == (Outage(50.0, 1), Outage(50.0, 2))
    with pytest.raises(UserError):
        next_outage(DOWN, second, now=50.0 + MAX_OUTAGE_SECONDS)

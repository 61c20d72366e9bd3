"""The Lease: who may act. Whole elections are played with two replicas whose clocks differ, on an API that delays and loses answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cluster_user import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_operator.cluster.api import LEASES, Kind
from fedpipe_operator.cluster.elector import Elector
from fedpipe_operator.cluster.leadership import Leadership
from fedpipe_operator.cluster.lease import (
    DURATION_SECONDS,
    HOLD_SECONDS,
    POLL_SECONDS,
    RENEW_SECONDS,
    Decision,
    Lease,
    Seen,
    decide,
    lease_of,
    look,
    new_body,
    release,
    renewal,
)
from fedpipe_operator.errors import TransientError, UserError

OURS, THEIRS = Lease("one", 12.0, "7"), Lease("two", 12.0, "7")


@pytest.mark.parametrize(
    ("lease", "held_until", "now", "expected"),
    [
        (None, None, 100.0, Decision.ACQUIRE),
        (Lease("", 12.0, "7"), None, 100.0, Decision.ACQUIRE),
        (OURS, None, 100.0, Decision.ACQUIRE),
        (THEIRS, None, 100.0, Decision.WAIT),
        (THEIRS, None, 111.9, Decision.WAIT),
        (THEIRS, None, 112.0, Decision.ACQUIRE),
        (OURS, 110.0, 102.9, Decision.WAIT),
        (OURS, 110.0, 103.0, Decision.RENEW),
        (OURS, 110.0, 500.0, Decision.RENEW),
        (THEIRS, 110.0, 101.0, Decision.LOST),
        (Lease("", 12.0, "7"), 110.0, 101.0, Decision.LOST),
        (None, 110.0, 101.0, Decision.LOST),
    ],
    ids=[
        "there is none",
        "it was released",
        "an earlier process of the same pod held it",
        "it was just renewed",
        "it has almost ended",
        "it has ended",
        "it was just renewed by us",
        "it is to be renewed",
        "it has ended, and nobody else took it",
        "another replica took it",
        "somebody released it",
        "somebody deleted it",
    ],
)
def test_what_a_replica_does_about_the_lease(lease: Lease | None, held_until: float | None, now: float, expected: Decision) -> None:
    assert decide(Seen(lease, since=100.0, at=now), held_until, now, "one") is expected


def test_a_candidate_counts_from_the_last_change_that_it_saw() -> None:
    first = look(None, THEIRS, 100.0)
    again = look(first, THEIRS, 111.0)
    renewed = look(again, Lease("two", 12.0, "8"), 111.5)

    assert (again.since, again.at, renewed.since) == (100.0, 111.0, 111.5)
    assert decide(renewed, None, 112.0, "one") is Decision.WAIT


def test_a_leader_stops_before_a_candidate_takes_over_and_may_fail_to_renew_twice() -> None:
    assert HOLD_SECONDS < DURATION_SECONDS
    assert 3 * RENEW_SECONDS < HOLD_SECONDS
    assert DURATION_SECONDS + 2 * POLL_SECONDS < 15, "the promised seconds of a failover"


def test_the_lease_is_written_for_its_holder_and_its_version() -> None:
    body = new_body("fedpipe", "one", 0.5)
    written = lease_of(body | {"metadata": {"name": "fedpipe", "resourceVersion": "7"}})
    taken, renewed = renewal(written, "two", 1.0), renewal(written, "one", 1.0)

    assert body["spec"] == {
        "holderIdentity": "one",
        "leaseDurationSeconds": 12,
        "renewTime": "1970-01-01T00:00:00.500000Z",
        "acquireTime": "1970-01-01T00:00:00.500000Z",
        "leaseTransitions": 0,
    }
    assert taken["metadata"] == renewed["metadata"] == release(written, 1.0)["metadata"] == {"resourceVersion": "7"}
    assert (taken["spec"]["holderIdentity"], taken["spec"]["leaseTransitions"]) == ("two", 1)
    assert renewed["spec"].keys() == {"holderIdentity", "leaseDurationSeconds", "renewTime"}
    assert release(written, 1.0)["spec"]["holderIdentity"] == ""


def test_a_lease_with_nothing_in_it_is_free() -> None:
    assert lease_of({"metadata": {"resourceVersion": "1"}}) == Lease("", DURATION_SECONDS, "1")


@dataclass
class LeaseServer:
    """The API server's one Lease, with optimistic concurrency."""

    body: dict[str, Any] | None = None
    version: int = 0
    trouble: Exception | None = None

    def get(self, kind: Kind, _namespace: str, _name: str) -> dict[str, Any] | None:
        self._meet(kind)
        return self.body

    def create(self, kind: Kind, _namespace: str, body: dict[str, Any]) -> dict[str, Any] | None:
        self._meet(kind)
        return None if self.body is not None else self._put(body)

    def merge(self, kind: Kind, _namespace: str, _name: str, change: dict[str, Any]) -> dict[str, Any] | None:
        self._meet(kind)
        if self.body is None:
            return None
        if change["metadata"]["resourceVersion"] != self.body["metadata"]["resourceVersion"]:
            raise TransientError("ApiConflict", "the object has been modified")
        return self._put({"spec": self.body["spec"] | change["spec"]})

    def holder(self) -> str:
        return str(self.body["spec"]["holderIdentity"]) if self.body is not None else ""

    def _put(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.body = body | {"metadata": {"resourceVersion": str(self.version)}}
        return self.body

    def _meet(self, kind: Kind) -> None:
        assert kind is LEASES
        if self.trouble is not None:
            raise self.trouble


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def an_elector(server: Any, clock: Callable[[], float], identity: str = "one") -> Elector:
    return Elector(server, "fedpipe", "fedpipe", identity, Leadership(clock))


def test_the_first_replica_leads_and_the_second_one_takes_over_when_the_first_stops_renewing() -> None:
    clock = Clock()
    one, two = (an_elector(server, clock, name) for server in [LeaseServer()] for name in ("one", "two"))
    led = []
    for second in range(40):
        clock.now = 1000.0 + second
        if second < 5:
            assert one.step()
        assert two.step()
        led.append((one.leadership.is_leader(), two.leadership.is_leader()))

    assert led[0] == (True, False)
    assert (False, True) in led
    assert (True, True) not in led
    assert led.index((False, True)) - 4 <= DURATION_SECONDS + 2 * POLL_SECONDS


def test_a_replica_that_stops_releases_the_lease_and_the_next_one_leads_at_once() -> None:
    clock, server = Clock(), LeaseServer()
    one, two = an_elector(server, clock, "one"), an_elector(server, clock, "two")
    assert one.step()
    assert two.step()

    one.stop()
    clock.now += POLL_SECONDS
    assert two.step()

    assert not one.leadership.is_leader()
    assert two.leadership.is_leader()
    assert server.body is not None
    assert server.body["spec"]["leaseTransitions"] == 1


def test_a_replica_that_stops_does_not_release_the_lease_while_one_of_its_calls_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_operator.cluster.elector._LAST_CALLS_SECONDS", 0.01)
    server = LeaseServer()
    elector = an_elector(server, Clock())
    assert elector.step()

    with elector.leadership.acting():
        elector.stop()

    assert server.holder() == "one"


def test_a_replica_that_stands_by_releases_nothing() -> None:
    clock, server = Clock(), LeaseServer()
    assert an_elector(server, clock, "one").step()
    two = an_elector(server, clock, "two")
    assert two.step()

    two.stop()

    assert server.holder() == "one"


def test_a_leader_without_an_api_server_stops_acting_and_goes_on_if_nobody_took_the_lease() -> None:
    clock, server = Clock(), LeaseServer()
    elector = an_elector(server, clock)
    assert elector.step()
    server.trouble = TransientError("ApiUnavailable", "no route to host")
    led = []
    for _ in range(30):
        clock.now += 1
        assert elector.step(), "an API server that does not answer is no reason to end the process"
        led.append(elector.leadership.is_leader())

    assert led[:9] == [True] * 9
    assert led[9:] == [False] * 21
    server.trouble = None
    assert elector.step()
    assert elector.leadership.is_leader()


def changes_something(leadership: Leadership) -> bool:
    """Whether a call that changes something is let through."""
    try:
        with leadership.acting():
            return True
    except TransientError:
        return False


def test_a_leader_that_could_not_renew_for_longer_than_the_lease_first_sees_what_there_is() -> None:
    clock, server, regained = Clock(), LeaseServer(), list[float]()
    elector = an_elector(server, clock)
    elector._on_regained = lambda: regained.append(clock.now)
    assert elector.step()
    assert changes_something(elector.leadership)
    server.trouble = TransientError("ApiUnavailable", "no route to host")
    clock.now += 90
    assert elector.step()
    server.trouble = None

    assert elector.step()
    assert regained == [1090.0]
    assert (elector.leadership.is_leader(), changes_something(elector.leadership)) == (True, False)
    clock.now += RENEW_SECONDS
    assert elector.step()
    assert regained == [1090.0], "a renewal in time is none"
    assert not changes_something(elector.leadership)

    elector.leadership.caught_up()

    assert changes_something(elector.leadership)


def test_a_renewal_in_time_keeps_a_leader_acting() -> None:
    clock, server = Clock(), LeaseServer()
    elector = an_elector(server, clock)
    for _ in range(20):
        assert elector.step()
        assert changes_something(elector.leadership)
        clock.now += HOLD_SECONDS - 1


def test_a_leader_that_was_paused_acts_no_more_and_ends_if_another_replica_has_taken_over() -> None:
    clock, server = Clock(), LeaseServer()
    one, two = an_elector(server, clock, "one"), an_elector(server, clock, "two")
    assert one.step()
    assert two.step()
    clock.now += 60
    assert not one.leadership.is_leader(), "by the clock, before any thread of it has run"
    assert two.step()

    assert two.leadership.is_leader()
    assert one.step(), "its renewal is refused: it looks next"
    assert not one.step()
    assert not one.leadership.is_leader()


def test_a_renewal_whose_answer_was_lost_is_no_loss_of_the_lease() -> None:
    clock, server = Clock(), LeaseServer()
    elector = an_elector(server, clock)
    assert elector.step()
    server.version += 1
    assert server.body is not None
    server.body["metadata"]["resourceVersion"] = str(server.version)  # written, and the answer was lost
    clock.now += RENEW_SECONDS
    assert elector.step()
    assert elector.step()

    assert elector.leadership.until == clock.now + HOLD_SECONDS


def test_a_new_process_of_the_same_pod_leads_at_once() -> None:
    clock, server = Clock(), LeaseServer()
    assert an_elector(server, clock).step()
    again = an_elector(server, clock)

    assert again.step()
    assert again.leadership.is_leader()


def test_a_right_that_is_missing_is_told_once_and_is_no_end(caplog: pytest.LogCaptureFixture) -> None:
    elector = an_elector(LeaseServer(trouble=UserError("ApiForbidden", "leases is forbidden")), Clock())

    assert elector.step()
    assert elector.step()

    assert [record.message for record in caplog.records] == ["the Lease fedpipe/fedpipe: ApiForbidden: leases is forbidden"]
    assert elector.problem == "ApiForbidden: leases is forbidden"


def test_the_thread_leads_and_ends_when_it_is_stopped() -> None:
    server, led = LeaseServer(), []
    elector = Elector(server, "fedpipe", "fedpipe", "one", Leadership())  # type: ignore[arg-type]
    elector.start(lambda: led.append(elector.leadership.is_leader()), on_regained=lambda: None)
    assert elector._thread is not None
    wait_until(lambda: led, "it leads", seconds=60)
    assert not elector.has_ended()

    elector.stop()

    assert not elector._thread.is_alive()
    assert led == [True]
    assert server.holder() == ""


def test_the_thread_ends_the_process_when_the_lease_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_operator.cluster.elector.POLL_SECONDS", 0.0)
    server, clock, lost = LeaseServer(), Clock(), list[str]()
    elector = Elector(server, "fedpipe", "fedpipe", "one", Leadership(clock), on_lost=lost.append)  # type: ignore[arg-type]
    elector.start(lambda: server._put({"spec": {"holderIdentity": "two"}}) and clock.__setattr__("now", 2000.0), on_regained=lambda: None)
    assert elector._thread is not None
    elector._thread.join(20)

    assert lost == ["the Lease fedpipe/fedpipe has gone to two, and this replica must not act"]
    assert elector.has_ended()
    assert not elector.leadership.is_leader()


def test_a_call_that_changes_something_is_refused_without_the_lease() -> None:
    clock = Clock()
    leadership = Leadership(clock)
    with pytest.raises(TransientError, match="NotLeading"), leadership.acting():
        pass
    leadership.extend(clock.now + 10)
    with leadership.acting():
        assert not leadership.give_up()
    assert leadership.give_up()


RATES = st.floats(min_value=1.0, max_value=1.15)
"""Seconds of a replica's clock in a second: they differ by less than the ratio of the Lease's duration to what the leader makes of it."""


@dataclass
class World:
    """Two replicas, each of which may take steps while a request of the other is on its way."""

    data: st.DataObject
    now: float = 0.0
    server: LeaseServer = field(default_factory=LeaseServer)
    replicas: dict[str, Elector] = field(default_factory=dict)
    in_flight: set[str] = field(default_factory=set)
    processes: int = 0

    def begin(self, who: str) -> None:
        """A new process; a new pod, or the same one again."""
        self.processes += 1
        rate, offset = self.data.draw(RATES), self.data.draw(st.floats(min_value=0, max_value=1e6))
        pod = f"{who}-{self.processes}" if self.data.draw(st.booleans()) else who
        self.replicas[who] = an_elector(SlowApi(self, who), lambda: offset + rate * self.now, pod)

    def pass_time(self) -> None:
        self.now += self.data.draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, 6.0, 11.0]))
        self.check()

    def check(self) -> None:
        """The property: at no time do both act."""
        assert sum(one.leadership.is_leader() for one in self.replicas.values()) <= 1

    def step(self, who: str) -> None:
        """The replica takes a step, stops, or is killed; if it loses the Lease, its process ends."""
        elector = self.replicas[who]
        what = self.data.draw(st.sampled_from(["step"] * 8 + ["stop", "kill"]))
        if what == "stop":
            elector.stop()
        if what != "step" or not elector.step():
            self.begin(who)
        self.check()


@dataclass
class SlowApi:
    """The server as one replica reaches it: requests and answers take time, in which the other replica goes on, or are lost."""

    world: World
    who: str

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._travel()
            found = getattr(self.world.server, method)(*arguments)
            self._travel()
            return found

        return call

    def _travel(self) -> None:
        world, (other,) = self.world, {"one", "two"} - {self.who}
        world.in_flight.add(self.who)
        for _ in range(world.data.draw(st.integers(min_value=0, max_value=3))):
            world.pass_time()
            if other not in world.in_flight:
                world.step(other)
        world.in_flight.discard(self.who)
        if world.data.draw(st.integers(min_value=0, max_value=7)) == 7:
            raise TransientError("ApiUnavailable", "lost")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_two_replicas_never_act_at_the_same_time(data: st.DataObject) -> None:
    world = World(data)
    for who in ("one", "two"):
        world.begin(who)
    for _ in range(data.draw(st.integers(min_value=1, max_value=25))):
        world.pass_time()
        world.step(data.draw(st.sampled_from(["one", "two"])))

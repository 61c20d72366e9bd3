"""The operator's identity: for the default store alone, a session for each run, renewed before it ends, and errors that say what to do."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_cluster import SETTINGS, KubeWorld, StandInApi, stamp
from stand_in_runs import a_run
from token_service import TokenService, running_token_service

from fedpipe_operator.api import StoreSpec
from fedpipe_operator.cluster.api import JOBS, SECRETS
from fedpipe_operator.cluster.credentials import StoreConnection, StoreConnections
from fedpipe_operator.cluster.identity import Identity
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.reconcile.placement import in_pods
from fedpipe_operator.store import Credentials, Guard
from fedpipe_operator.store_identity import StoreIdentity
from fedpipe_operator.store_policy import ANY_STORE

ROLE = "arn:aws:iam::123456789012:role/fedpipe"
STORE = {"bucket": "fedpipe", "endpoint": "http://minio:9000"}


@dataclass
class World:
    """An operator with an identity for `STORE`."""

    service: TokenService
    token: Path
    now: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    guard: Guard | None = None
    """The stand-in listens on loopback."""

    def __post_init__(self) -> None:
        self.api = StandInApi(lambda: self.now)
        self.restart()

    def restart(self) -> None:
        given = {"role_arn": ROLE, "sts_endpoint": self.service.endpoint} | self.settings
        identity = Identity(StoreIdentity(**given), StoreSpec.model_validate(STORE), self.guard, self.token)
        self.stores = StoreConnections(self.api, ANY_STORE, (), clock=lambda: self.now, identity=identity)  # type: ignore[arg-type]

    def open(self, **spec: Any) -> StoreConnection:
        return self.stores.of(a_run(**{"store": STORE} | spec))

    def policies(self) -> list[str]:
        """The resources of each session's policy."""
        return [",".join(one["Resource"] for one in json.loads(asked["Policy"])["Statement"]) for asked in self.service.asked]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    token = tmp_path / "token"
    token.write_text("a-jwt\n")
    with running_token_service() as service:
        yield World(service, token)


def test_a_run_on_the_default_store_has_a_session_of_its_own_that_opens_its_folder_alone(world: World) -> None:
    found = world.open()

    assert found.credentials == Credentials("key-1", "secret-1", "session-1", 3600.0)
    assert world.service.asked == [
        {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": ROLE,
            "RoleSessionName": "fedpipe-uid-1",
            "WebIdentityToken": "a-jwt",
            "DurationSeconds": "3600",
            "Policy": world.service.asked[0]["Policy"],
        }
    ]
    assert world.policies() == ["arn:aws:s3:::fedpipe,arn:aws:s3:::fedpipe/fedpipe/default/toy/uid-1/*,*"]
    assert world.api.noted == [], "no Secret is read"
    assert not [secret for secret in ("secret-1", "session-1") if secret in repr(found.credentials)]


def test_its_worker_processes_and_its_model_have_the_same_session(world: World) -> None:
    found = world.open()

    assert found.environment == {"AWS_ACCESS_KEY_ID": "key-1", "AWS_SECRET_ACCESS_KEY": "secret-1", "AWS_SESSION_TOKEN": "session-1"}
    assert in_pods(found.credentials, found.guard).credentials() == found.credentials


@pytest.mark.parametrize(
    "store",
    [
        {"bucket": "other-team", "endpoint": "http://minio:9000"},
        {"bucket": "fedpipe", "endpoint": "http://minio:9000", "prefix": "other-team"},
        {"bucket": "fedpipe", "endpoint": "http://minio:9000", "prefix": ""},
        {"bucket": "fedpipe", "endpoint": "http://evil:9000"},
        {"bucket": "fedpipe", "endpoint": "http://minio:9000", "trainerEndpoint": "http://evil:9000"},
        {"bucket": "fedpipe", "endpoint": "http://minio:9000", "region": "eu-west-1"},
        {"bucket": "fedpipe"},
    ],
    ids=str,
)
def test_no_store_that_a_run_chooses_is_opened_with_the_operators_identity(world: World, store: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"CredentialsMissing: .*nothing in a run's store with an identity of its own"):
        world.open(store=store)

    assert world.service.asked == []


@pytest.mark.parametrize("source", ["s3://other-team/model", "s3://fedpipe/fedpipe/labs/toy/uid-2/export/merged"])
def test_no_model_that_a_run_chooses_is_read_with_the_operators_identity(world: World, source: str) -> None:
    with pytest.raises(UserError) as refusal:
        world.open(model={"source": source})

    assert (refusal.value.reason, world.service.asked) == ("StoreNotAllowed", [])
    assert refusal.value.message == (
        f"spec.model.source: the operator's identity reads no model in {source}, nor anywhere else; "
        "name another model, or a store and a key pair of your own (spec.store), or ask the operator's administrator"
    )


def test_a_model_in_a_folder_of_the_administrators_is_read_by_the_session_of_its_run(world: World) -> None:
    world.settings["models"] = ("hub/models",)
    world.restart()

    world.open(model={"source": "s3://hub/models/bert"})

    assert world.policies()[0].endswith(",arn:aws:s3:::hub,arn:aws:s3:::hub/models/*,*")


def test_a_run_of_the_default_store_that_names_a_secret_of_its_own_is_opened_with_that(world: World) -> None:
    with pytest.raises(UserError, match="SecretMissing"):
        world.open(store=STORE | {"credentialsSecretRef": {"name": "keys"}})

    assert world.service.asked == []


@pytest.mark.parametrize(("now", "sessions"), [(1799.0, 1), (1800.0, 2)])
def test_another_session_is_made_at_half_of_its_time(world: World, now: float, sessions: int) -> None:
    world.open()
    world.now = now
    world.service.expiration = "1970-01-01T01:30:00Z"

    assert world.open().credentials.access_key == f"key-{sessions}"
    assert len(world.service.asked) == sessions


def test_the_token_is_read_anew_for_each_session_since_the_kubelet_replaces_it(world: World) -> None:
    world.open()
    world.token.write_text("a-later-jwt")
    world.now = 3000.0
    world.open()

    assert [one["WebIdentityToken"] for one in world.service.asked] == ["a-jwt", "a-later-jwt"]


def test_no_url_is_signed_by_a_session_that_has_ended_nor_lives_longer_than_it(world: World) -> None:
    store = world.open().store.inner  # type: ignore[attr-defined]
    store._clock = lambda: 3600.0 - 120.0

    assert "X-Amz-Expires=120" in store.url_to_read("plan.json", 7200)
    store._clock = lambda: 3600.0
    with pytest.raises(UserError, match="CredentialsExpired"):
        store.url_to_read("plan.json", 7200)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read from {file}: .*No such file"),
        (" \n", "is missing, since {file} is empty; install the operator with the chart's"),
    ],
)
def test_a_token_that_is_missing_or_empty_is_told_with_its_file_and_role(world: World, content: str | None, sentence: str) -> None:
    world.token.unlink()
    if content is not None:
        world.token.write_text(content)

    with pytest.raises(
        UserError, match=f"IdentityTokenMissing: the operator's token for the role {ROLE} {sentence.format(file=world.token)}"
    ):
        world.open()


REFUSALS = [
    (403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"),
    (400, "ExpiredTokenException", "Token expired: current date/time 2 must be before the expiration date/time 1"),
    (400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."),
    (400, "PackedPolicyTooLarge", "Packed policy consumes 120% of allotted space"),
]


@pytest.mark.parametrize(("status", "code", "message"), REFUSALS)
def test_a_role_that_is_refused_is_told_with_its_name_its_file_and_what_the_service_says(
    world: World, status: int, code: str, message: str
) -> None:
    world.service.refusal = (status, code, message)

    with pytest.raises(UserError) as error:
        world.open()

    assert error.value.reason == "IdentityRefused"
    assert f"the role {ROLE} at {world.service.endpoint} is refused to the operator with its token {world.token}" in error.value.message
    assert f"{message} ({code}, HTTP {status})" in error.value.message
    assert "a-jwt" not in error.value.message


@pytest.mark.parametrize(("status", "code"), [(400, "IDPCommunicationError"), (400, "Throttling"), (503, "ServiceUnavailable"), (429, "x")])
def test_a_service_that_cannot_answer_now_is_asked_again_later(
    world: World, status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    world.service.refusal = (status, code, "later")

    with pytest.raises(TransientError, match=f"StoreUnavailable: the role {ROLE} at "):
        world.open()


def test_a_service_that_does_not_answer_blocks_no_run_whose_session_goes_on_for_a_quarter_of_an_hour(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    first = world.open()
    world.service.refusal = (503, "ServiceUnavailable", "later")

    world.now = 3600.0 - 901.0
    assert world.open().credentials == first.credentials
    assert len(world.service.asked) == 2, "it was asked for another one"
    world.now = 3600.0 - 900.0
    with pytest.raises(TransientError):
        world.open()


def test_a_role_that_is_refused_blocks_its_runs_at_once_while_there_is_time_to_correct_it(world: World) -> None:
    world.open()
    world.now, world.service.refusal = 1800.0, REFUSALS[0]

    with pytest.raises(UserError, match="IdentityRefused"):
        world.open()


def test_the_token_goes_to_no_address_of_the_cluster_itself(world: World) -> None:
    world.guard = Guard(("10.96.0.1",))
    world.restart()

    with pytest.raises(UserError, match=r"AddressRefused: the role .* loopback"):
        world.open()
    assert world.service.asked == []


def test_without_an_identity_the_default_store_needs_a_secret_as_any_other(world: World) -> None:
    world.settings["role_arn"] = ""
    world.restart()

    with pytest.raises(UserError, match="CredentialsMissing"):
        world.open()


# --- Jobs that aggregate

AGGREGATION = "toy-aggregate-r1-a0"


def until_it_aggregates(folder: Path) -> KubeWorld:
    settings = replace(SETTINGS, default_store=StoreSpec(bucket="fedpipe"), aggregation_job_threshold=1)
    world = KubeWorld(folder, a_run(store=None, rounds={"count": 1, "queueDeadline": "2h"}), settings=settings)
    world.stores.credentials = Credentials("key-1", "secret-1", "session-1")
    world.work_until("aggregate-r1")
    return world


def pair_of(secret: dict[str, Any]) -> dict[str, str]:
    return {name: text for name, text in secret["stringData"].items() if name.startswith("AWS_")}


def test_an_aggregation_has_the_pair_of_its_runs_session_and_no_trainer_has(tmp_path: Path) -> None:
    world = until_it_aggregates(tmp_path)
    name = world.object_name(AGGREGATION)
    secrets = {key[2]: one for key, one in world.api.objects.items() if key[0] == SECRETS.plural}
    container = world.api.objects[JOBS.plural, "default", name]["spec"]["template"]["spec"]["containers"][0]

    assert pair_of(secrets[name]) == {"AWS_ACCESS_KEY_ID": "key-1", "AWS_SECRET_ACCESS_KEY": "secret-1", "AWS_SESSION_TOKEN": "session-1"}
    assert {one["valueFrom"]["secretKeyRef"]["name"] for one in container["env"] if "valueFrom" in one} == {name}
    assert {one["name"] for one in container["env"] if "valueFrom" in one} == set(pair_of(secrets[name]))
    assert len(secrets) > 1
    assert [other for other in secrets if other != name and pair_of(secrets[other])] == []


def test_an_aggregation_that_waits_in_a_queue_gets_the_pair_of_the_next_session_with_its_task(tmp_path: Path) -> None:
    world = until_it_aggregates(tmp_path)
    name = world.object_name(AGGREGATION)
    suspended = {"type": "Suspended", "status": "True", "lastTransitionTime": stamp(world.now)}
    world.api.merge(JOBS, "default", name, {"spec": {"suspend": True}, "status": {"conditions": [suspended]}})
    world.stores.credentials = Credentials("key-2", "secret-2", "session-2")
    world.now += 900
    world.reconcile()

    assert "session-2" in pair_of(world.api.objects[SECRETS.plural, "default", name]).values()
    assert world.api.noted.count(f"create jobs {name}") == 1, "the Job keeps its place in the queue"

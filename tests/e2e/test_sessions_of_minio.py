"""The operator's identity with a real MinIO and an OpenID provider: each session opens the folder of its run alone."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from identity_policies import minio_policy
from minio import Minio, running_minio
from stand_in_cluster import StandInApi
from stand_in_runs import a_run
from token_issuer import Issuer, running_issuer

from fedpipe_operator.api import Metadata, StoreSpec
from fedpipe_operator.cluster.credentials import StoreConnection, StoreConnections
from fedpipe_operator.cluster.identity import Identity
from fedpipe_operator.errors import UserError
from fedpipe_operator.rounds import Run
from fedpipe_operator.selftest.__main__ import session_of, store_is_opened_and_works
from fedpipe_operator.store import S3Store, model_in_bucket
from fedpipe_operator.store.address import BucketAddress, credentials_for, open_store
from fedpipe_operator.store.sts import Role, assume_role
from fedpipe_operator.store_identity import AUDIENCE, StoreIdentity
from fedpipe_operator.store_policy import ANY_STORE

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

BUCKET: Final = "fedpipe"
MODEL: Final = "s3://fedpipe/models/toy"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def minio(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    folder = tmp_path_factory.mktemp("minio")
    with running_minio(folder, issuer.configuration, AUDIENCE, minio_policy(), BUCKET, "other-team") as minio:
        minio.store(BUCKET, "models").write("toy/config.json", b"{}")
        minio.store(BUCKET, "secrets").write("toy/config.json", b"{}")
        minio.store("other-team", "model").write("config.json", b"{}")
        yield minio


@dataclass
class World:
    """An operator whose identity opens the bucket of the page."""

    minio: Minio
    token: Path
    now: float = field(default_factory=time.time)
    role: str = ""

    def __post_init__(self) -> None:
        self.store = StoreSpec(bucket=BUCKET, endpoint=self.minio.endpoint)
        settings = StoreIdentity(role_arn=self.role or self.minio.role, models=(f"{BUCKET}/models",))
        identity = Identity(settings, self.store, None, self.token)
        api = StandInApi(lambda: self.now)
        self.stores = StoreConnections(api, ANY_STORE, None, clock=lambda: self.now, identity=identity)  # type: ignore[arg-type]

    def run(self, name: str = "one", **spec: Any) -> Run:
        run = a_run(store=self.store.model_dump(by_alias=True, exclude_none=True), **spec)
        meta = Metadata(name=name, namespace="wards", uid=f"uid-of-{name}")
        return Run(run.resource.model_copy(update={"metadata": meta}), ())

    def open(self, name: str = "one", **spec: Any) -> StoreConnection:
        return self.stores.of(self.run(name, **spec))

    def by_session_of(self, one: StoreConnection, other: StoreConnection) -> S3Store:
        """The folder of `other`, opened with the session of `one`."""
        opened = open_store(other.address, one.credentials)
        assert isinstance(opened, S3Store)
        return opened


@pytest.fixture
def world(minio: Minio, issuer: Issuer, tmp_path: Path) -> World:
    token = tmp_path / "token"
    token.write_text(issuer.token(AUDIENCE))
    return World(minio, token)


def test_all_that_a_run_does_to_its_store_works_with_its_session(world: World, tmp_path: Path) -> None:
    store = world.open().store
    (tmp_path / "merged").write_bytes(bytes(20 * 2**20))

    assert store.create("rounds/0001/result.json", b"first")
    assert not store.create("rounds/0001/result.json", b"second")
    store.write_file("export/merged", tmp_path / "merged")
    put = httpx.put(store.url_to_write("updates/a/adapter", 60), content=b"factors")
    form = store.form_to_write("updates/a/result.json", 60, 10)
    assert form is not None
    posted = httpx.post(form.url, data=dict(form.fields), files={"file": ("result.json", b"{}")})

    assert (put.status_code, posted.status_code) == (200, 204)
    assert httpx.get(store.url_to_read("updates/a/adapter", 60)).content == b"factors"
    assert store.list() == ["export/merged", "rounds/0001/result.json", "updates/a/adapter", "updates/a/result.json"]
    store.delete("")
    assert store.list() == []


def test_a_worker_process_and_a_job_open_the_same_folder_with_what_they_are_given(world: World) -> None:
    found = world.open("worker")

    assert open_store(found.address, credentials_for(found.address, found.environment)).create("plan.json", b"{}")


def delete_one(store: S3Store, key: str) -> None:
    """Without the listing of `delete`, which would be refused first."""
    with store._call(key):
        store._client.delete_object(Bucket=store.bucket, Key=store._full_key(key))


@pytest.mark.parametrize("operation", ["read", "write", "list", "delete", "url_to_read", "url_to_write"])
def test_the_session_of_one_run_opens_nothing_of_another_run(world: World, operation: str) -> None:
    mine, other = world.open("mine"), world.open("other")
    other.store.write("plan.json", b"theirs")
    theirs = world.by_session_of(mine, other)
    calls = {
        "read": lambda: theirs.read("plan.json"),
        "write": lambda: theirs.write("plan.json", b"mine"),
        "list": theirs.list,
        "delete": lambda: delete_one(theirs, "plan.json"),
        "url_to_read": lambda: httpx.get(theirs.url_to_read("plan.json", 60)).raise_for_status(),
        "url_to_write": lambda: httpx.put(theirs.url_to_write("plan.json", 60), content=b"mine").raise_for_status(),
    }

    with pytest.raises(Exception, match=r"StoreDenied|403 Forbidden"):
        calls[operation]()
    assert other.store.read("plan.json") == b"theirs"


def test_the_session_of_a_run_reads_the_administrators_models_if_its_run_names_one_and_never_writes_them(world: World) -> None:
    with_model, without = world.open("with-model", model={"source": MODEL}), world.open("without")
    read = model_in_bucket(MODEL, world.store, seconds=60, credentials=with_model.credentials, guard=None)
    models = S3Store(BUCKET, "models", endpoint=world.minio.endpoint, credentials=with_model.credentials)

    assert httpx.get(read.files["config.json"]).content == b"{}"
    with pytest.raises(UserError, match="StoreDenied"):
        models.write("toy/config.json", b"other")
    with pytest.raises(UserError, match="StoreDenied"):
        model_in_bucket(MODEL, world.store, seconds=60, credentials=without.credentials, guard=None)


@pytest.mark.parametrize("source", ["s3://other-team/model", "s3://fedpipe/secrets/toy"])
def test_what_the_operator_would_refuse_the_session_does_not_open_either(world: World, source: str) -> None:
    with pytest.raises(UserError, match="StoreNotAllowed"):
        world.open("refused", model={"source": source})
    session = world.open("refused", model={"source": MODEL}).credentials

    with pytest.raises(UserError, match="StoreDenied"):
        model_in_bucket(source, world.store, seconds=60, credentials=session, guard=None)


def test_a_session_is_replaced_at_half_of_its_time_by_another_that_works(world: World) -> None:
    first = world.open("long")
    world.now += 1795
    assert world.open("long").credentials == first.credentials
    world.now += 10
    second = world.open("long")

    assert second.credentials.access_key != first.credentials.access_key
    assert second.store.create("plan.json", b"{}")


def test_no_url_of_a_session_lives_longer_than_it(world: World) -> None:
    url = world.open("long").store.url_to_read("plan.json", 7 * 86400)

    assert 3500 <= int(httpx.URL(url).params["X-Amz-Expires"]) <= 3600


@pytest.mark.parametrize(
    ("token", "words"),
    [({"seconds": -10}, "Token is expired"), ({"audience": "another"}, "must match configured OpenID Client ID")],
    ids=["expired", "of another audience"],
)
def test_a_token_that_minio_does_not_accept_is_told_in_its_words_with_role_and_file(
    world: World, issuer: Issuer, token: dict[str, Any], words: str
) -> None:
    world.token.write_text(issuer.token(**{"audience": AUDIENCE} | token))

    with pytest.raises(UserError, match=f"IdentityRefused: the role {world.minio.role} at .* its token {world.token}: .*{words}"):
        world.open()


def whole_bucket(world: World, token: str) -> S3Store:
    """What whoever has this token may make of it: a session without limits of its own."""
    world.token.write_text(token)
    role = Role(world.minio.role, world.token, world.minio.endpoint, "us-east-1")
    anything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}]}
    session = assume_role(role, session="anybody", policy=json.dumps(anything), seconds=3600)
    return S3Store(BUCKET, "", endpoint=world.minio.endpoint, credentials=session)


def test_the_token_of_another_service_account_opens_nothing_although_minio_gives_it_a_session(world: World, issuer: Issuer) -> None:
    whole_bucket(world, issuer.token(AUDIENCE)).write("fedpipe/wards/theirs/plan.json", b"theirs")
    stranger = whole_bucket(world, issuer.token(AUDIENCE, subject="system:serviceaccount:wards:default"))

    for key in ("fedpipe/wards/theirs/plan.json", "models/toy/config.json"):
        with pytest.raises(UserError, match="StoreDenied"):
            stranger.read(key)
    for attempt in (lambda: stranger.list("fedpipe/wards"), lambda: stranger.write("fedpipe/wards/theirs/plan.json", b"mine")):
        with pytest.raises(UserError, match="StoreDenied"):
            attempt()


def test_helm_test_opens_its_own_folder_by_the_role_and_nothing_of_a_run(world: World) -> None:
    of_test = BucketAddress(bucket=BUCKET, prefix="fedpipe/_helm-test", endpoint=world.minio.endpoint)
    identity = StoreIdentity(role_arn=world.minio.role)
    run = world.open("tested-beside")

    said = store_is_opened_and_works(of_test, {"FEDPIPE_TEST_IDENTITY": identity.to_json()}, world.token)
    theirs = open_store(run.address, session_of(of_test, identity, world.token))

    assert said == (
        f"{world.minio.role} gives a session to the operator's service account; objects are written and read, also by presigned URLs; "
        "uploads are bound to their size; they are deleted"
    )
    with pytest.raises(UserError, match="StoreDenied"):
        theirs.write("plan.json", b"{}")


def test_a_role_that_minio_does_not_know_is_told_with_its_name(world: World) -> None:
    stranger = World(world.minio, world.token, role="arn:minio:iam:::role/AAAAAAAAAAAAAAAAAAAAAAAAAAA")

    with pytest.raises(UserError, match=r"IdentityRefused: the role arn:minio:iam:::role/A+ at .* is not defined"):
        stranger.open()

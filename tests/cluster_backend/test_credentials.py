"""Each run's store with the key pair of its own Secret."""

import base64
from dataclasses import replace
from typing import Any

import pytest
from stand_in_cluster import StandInApi
from stand_in_runs import a_run

from fedpipe_operator.cluster.api import SECRETS
from fedpipe_operator.cluster.credentials import StoreConnection, StoreConnections
from fedpipe_operator.errors import UserError
from fedpipe_operator.reconcile.placement import in_pods
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials, Guard, S3Store
from fedpipe_operator.store.address import BucketAddress
from fedpipe_operator.store.observed import ObservedStore
from fedpipe_operator.store_policy import ANY_STORE, StorePolicy, StoreRule

RUN = a_run(store={"bucket": "fedpipe", "prefix": "runs", "endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "keys"}})


PAIR = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}


def encoded(**data: str) -> dict[str, Any]:
    return {"metadata": {"name": "keys"}, "data": {name: base64.b64encode(value.encode()).decode() for name, value in data.items()}}


@pytest.fixture
def api() -> StandInApi:
    return StandInApi(lambda: 0.0)


def opened(api: StandInApi) -> StoreConnection:
    return connections(api).of(RUN)


def connections(api: StandInApi, policy: StorePolicy = ANY_STORE) -> StoreConnections:
    return StoreConnections(api, policy, ("10.96.0.1",))  # type: ignore[arg-type]


def test_a_run_has_its_own_folder_of_the_bucket_and_its_workers_get_its_keys(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))

    found = opened(api)

    assert isinstance(found.store, ObservedStore)
    bucket = found.store.inner
    assert isinstance(bucket, S3Store)
    assert (bucket.bucket, bucket.prefix) == ("fedpipe", "runs/default/toy/uid-1")
    assert found.environment == PAIR
    assert "secret" not in repr(found.credentials)


def test_the_secret_is_read_once_until_it_is_forgotten(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))
    stores = connections(api)
    stores.of(RUN)
    stores.of(RUN)
    assert api.noted.count("get secrets keys") == 1

    stores.forget("uid-1")
    stores.of(RUN)
    assert api.noted.count("get secrets keys") == 2


def test_a_secret_that_does_not_exist_is_reported_by_its_name(api: StandInApi) -> None:
    with pytest.raises(UserError, match=r"SecretMissing: spec.store.credentialsSecretRef: there is no Secret default/keys: create it"):
        opened(api)


def test_a_run_without_a_store_of_an_operator_without_a_default_is_told_what_to_do(api: StandInApi) -> None:
    with pytest.raises(UserError, match=r"StoreMissing: spec\.store is not set, and the operator has no default store: add it, or"):
        connections(api).of(a_run(store=None))


def test_what_a_secret_lacks_is_reported(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(AWS_ACCESS_KEY_ID="me"))

    with pytest.raises(UserError, match=r"SecretIncomplete: the Secret default/keys has no AWS_SECRET_ACCESS_KEY: add it"):
        opened(api)


AMBIENT = {
    "AWS_ACCESS_KEY_ID": "of-the-operator",
    "AWS_SECRET_ACCESS_KEY": "its-secret",
    "AWS_SESSION_TOKEN": "its-token",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/token",
    "AWS_ROLE_ARN": "arn:aws:iam::1:role/operator",
}


@pytest.fixture
def ambient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's pod has a cloud identity."""
    for name, value in AMBIENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("ambient")
def test_with_no_credentials_secret_ref_the_operators_own_identity_signs_nothing(api: StandInApi) -> None:
    with pytest.raises(UserError) as refusal:
        connections(api).of(a_run(store={"bucket": "fedpipe"}, model={"source": "s3://other-team/model"}))

    assert refusal.value.reason == "CredentialsMissing"
    assert "name a Secret of the namespace default with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refusal.value.message
    assert api.noted == []


@pytest.mark.usefixtures("ambient")
def test_the_operators_session_token_goes_to_no_endpoint(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))
    found = opened(api)

    url = found.store.url_to_read("plan.json", 60)

    assert "Credential=me%2F" in url
    assert not [secret for secret in AMBIENT.values() if secret in url]
    assert "Security-Token" not in url


@pytest.mark.usefixtures("ambient")
def test_a_model_in_another_bucket_is_signed_for_with_the_runs_own_key_pair(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))
    found = opened(api)

    assert in_pods(found.credentials, found.guard).credentials() == Credentials("me", "secret")


def test_no_store_of_a_run_connects_to_the_cluster_itself(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))
    found = opened(api)

    assert found.guard == Guard(("10.96.0.1",))
    assert isinstance(found.address, BucketAddress)
    assert BucketAddress.model_validate_json(found.address.to_json()).guard == found.guard  # so that a worker process does not either


@pytest.mark.parametrize("endpoint", ["http://169.254.169.254", "http://127.0.0.1:8080", "http://10.96.0.1:443", "http://[fe80::1]:9000"])
def test_a_refused_address_blocks_the_run_that_names_it_with_a_reason(api: StandInApi, endpoint: str) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))
    store = RUN.spec.store.model_dump(by_alias=True, exclude_none=True) | {"endpoint": endpoint}

    with pytest.raises(UserError) as refusal:
        connections(api).of(a_run(store=store)).store.list()

    assert refusal.value.reason == "AddressRefused"


def test_a_store_that_the_policy_does_not_allow_is_never_opened_and_its_secret_not_read(api: StandInApi) -> None:
    policy = StorePolicy({"default": StoreRule(endpoints=("https://s3.example.com",))})

    with pytest.raises(UserError) as refusal:
        connections(api, policy).of(RUN)

    assert refusal.value.reason == "StoreNotAllowed"
    assert refusal.value.message == (
        "spec.store.endpoint http://minio:9000 is none of the endpoints that the operator's policy allows here: https://s3.example.com; "
        "name one of these, or ask the operator's administrator to allow it"
    )
    assert api.noted == []


# --- pairs that expire

SESSION = {"AWS_SESSION_TOKEN": "a-token", "AWS_CREDENTIAL_EXPIRATION": "1970-01-01T01:00:00Z"}


def test_a_pair_with_a_session_token_signs_with_it_and_is_passed_to_workers(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR, **SESSION))
    found = StoreConnections(api, ANY_STORE, (), clock=lambda: 0.0).of(RUN)  # type: ignore[arg-type]

    assert found.credentials == Credentials("me", "secret", "a-token", 3600.0)
    assert found.environment == PAIR | {"AWS_SESSION_TOKEN": "a-token"}
    assert "token" not in repr(found.credentials)


def test_the_secret_is_read_again_before_its_pair_expires(api: StandInApi) -> None:
    times = iter((2699.0, 2701.0))  # of the second call and of the third
    api.apply(SECRETS, "default", encoded(**PAIR, **SESSION))
    stores = StoreConnections(api, ANY_STORE, (), clock=lambda: next(times))  # type: ignore[arg-type]
    for _ in range(2):
        stores.of(RUN)
    assert api.noted.count("get secrets keys") == 1

    api.apply(SECRETS, "default", encoded(**PAIR | SESSION | {"AWS_CREDENTIAL_EXPIRATION": "1970-01-01T02:00:00Z"}))
    assert stores.of(RUN).credentials.expires_at == 7200.0


@pytest.mark.parametrize("written", ["soon", "2026-01-31", "2026-01-31T12:00:00"])
def test_an_expiration_without_its_zone_is_refused_with_how_to_write_it(api: StandInApi, written: str) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR, AWS_CREDENTIAL_EXPIRATION=written))

    with pytest.raises(UserError, match=r"SecretInvalid: AWS_CREDENTIAL_EXPIRATION of the Secret default/keys .* 2026-01-31T12:00:00Z"):
        opened(api)


def trainers_sent_to(endpoint: str) -> Run:
    return a_run(store=RUN.spec.store.model_dump(by_alias=True, exclude_none=True) | {"trainerEndpoint": endpoint})


def test_trainers_are_not_sent_to_the_cluster_itself_either(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))

    with pytest.raises(UserError, match=r"AddressRefused: store\.trainerEndpoint http://169\.254\.169\.254: .*link-local"):
        connections(api).of(trainers_sent_to("http://169.254.169.254"))


def test_trainers_are_not_sent_to_an_endpoint_of_the_api_server_but_to_another_port_of_its_node(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))
    stores = replace(connections(api), api_servers=("192.0.2.10:6443",))

    with pytest.raises(UserError, match=r"AddressRefused: store\.trainerEndpoint https://192\.0\.2\.10:6443: .*API server"):
        stores.located(trainers_sent_to("https://192.0.2.10:6443"))
    stores.located(trainers_sent_to("http://192.0.2.10:30900"))

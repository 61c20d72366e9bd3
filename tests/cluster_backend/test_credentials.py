"""Each run's store with the key pair of its own Secret."""

import base64
from typing import Any

import pytest
from stand_in_cluster import StandInApi
from stand_in_runs import a_run

from fedpipe_operator.cluster.api import SECRETS
from fedpipe_operator.cluster.credentials import StoreConnection, StoreConnections
from fedpipe_operator.errors import UserError
from fedpipe_operator.store import S3Store

RUN = a_run(store={"bucket": "fedpipe", "prefix": "runs", "endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "keys"}})


PAIR = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}


def encoded(**data: str) -> dict[str, Any]:
    return {"metadata": {"name": "keys"}, "data": {name: base64.b64encode(value.encode()).decode() for name, value in data.items()}}


@pytest.fixture
def api() -> StandInApi:
    return StandInApi(lambda: 0.0)


def opened(api: StandInApi) -> StoreConnection:
    return StoreConnections(api).of(RUN)  # type: ignore[arg-type]


def test_a_run_has_its_own_folder_of_the_bucket_and_its_workers_get_its_keys(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))

    found = opened(api)

    assert isinstance(found.store, S3Store)
    assert (found.store.bucket, found.store.prefix) == ("fedpipe", "runs/default/toy/uid-1")
    assert found.environment == PAIR
    assert "secret" not in repr(found.credentials)


def test_the_secret_is_read_once_until_it_is_forgotten(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(**PAIR))
    stores = StoreConnections(api)  # type: ignore[arg-type]
    stores.of(RUN)
    stores.of(RUN)
    assert api.noted.count("get secrets keys") == 1

    stores.forget("uid-1")
    stores.of(RUN)
    assert api.noted.count("get secrets keys") == 2


def test_a_secret_that_does_not_exist_is_reported_by_its_name(api: StandInApi) -> None:
    with pytest.raises(UserError, match=r"SecretMissing: spec.store.credentialsSecretRef: there is no Secret default/keys: create it"):
        opened(api)


def test_what_a_secret_lacks_is_reported(api: StandInApi) -> None:
    api.apply(SECRETS, "default", encoded(AWS_ACCESS_KEY_ID="me"))

    with pytest.raises(UserError, match=r"SecretIncomplete: the Secret default/keys has no AWS_SECRET_ACCESS_KEY: add it"):
        opened(api)


def test_without_a_secret_the_keys_are_found_as_boto3_finds_them(api: StandInApi) -> None:
    found = StoreConnections(api).of(a_run(store={"bucket": "fedpipe"}))  # type: ignore[arg-type]

    assert found.credentials is None
    assert found.environment == {}
    assert api.noted == []

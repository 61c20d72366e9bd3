"""Stores in another region, key pairs that a session token goes with, and certificates of a private CA."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from s3_servers import CREDENTIALS, Server
from stand_in_cluster import SETTINGS, KubeWorld, StandInApi
from stand_in_runs import a_run, a_site

from fedpipe_operator.api import StoreSpec
from fedpipe_operator.backend import JobResources, TaskKind
from fedpipe_operator.cluster.api import SECRETS
from fedpipe_operator.cluster.credentials import StoreConnections
from fedpipe_operator.errors import UserError
from fedpipe_operator.manifests import aggregation_job, trainer_job
from fedpipe_operator.pod_settings import CaBundle
from fedpipe_operator.rounds import job_of
from fedpipe_operator.store import Credentials, S3Store
from fedpipe_operator.store_policy import ANY_STORE

SESSION = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "a-token"}
TRUSTED = {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"}


def test_a_bucket_of_another_region_is_told_before_a_trainer_gets_a_url(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.endpoint)  # in the place of AWS
    client = boto3.client("s3", region_name="eu-west-2", aws_access_key_id="a", aws_secret_access_key="b")  # noqa: S106 -- moto asks for none
    client.create_bucket(Bucket="abroad", CreateBucketConfiguration={"LocationConstraint": "eu-west-2"})

    with pytest.raises(UserError, match=r"WrongRegion: .* is in the region eu-west-2, and store.region is us-east-1"):
        S3Store("abroad", "", credentials=CREDENTIALS).url_to_read("a", 60)


def test_the_session_token_of_a_secret_signs_and_goes_to_the_operators_workers() -> None:
    api = StandInApi(lambda: 0.0)
    data = {name: base64.b64encode(value.encode()).decode() for name, value in SESSION.items()}
    api.apply(SECRETS, "default", {"metadata": {"name": "keys"}, "data": data})
    run = a_run(store={"bucket": "fedpipe", "endpoint": "http://minio:9000", "credentialsSecretRef": {"name": "keys"}})

    found = StoreConnections(api, ANY_STORE, (), clock=lambda: 0.0).of(run)  # type: ignore[arg-type]

    assert found.credentials == Credentials("me", "secret", "a-token")
    assert found.environment == SESSION


def test_an_aggregations_job_has_the_credentials_of_the_operators_identity(tmp_path: Path) -> None:
    settings = replace(SETTINGS, default_store=StoreSpec(bucket="fedpipe"), aggregation_job_threshold=1)
    world = KubeWorld(tmp_path, a_run(store=None, rounds={"count": 1}), settings=settings)
    world.stores.credentials = Credentials("me", "secret", "a-token")
    world.work_until("aggregate-r1")

    secret = world.api.objects[SECRETS.plural, "default", world.object_name("toy-aggregate-r1-a0")]
    assert secret["stringData"].items() >= SESSION.items()


@pytest.mark.parametrize("kind", [TaskKind.TRAIN, TaskKind.EXPORT, TaskKind.AGGREGATE])
def test_one_bundle_of_a_private_ca_is_trusted_by_the_pods_of_all_jobs(kind: TaskKind) -> None:
    settings, site = replace(SETTINGS, ca_bundle=CaBundle(config_map_name="hospital-ca", key="ca.pem")), a_site("ward")
    run = a_run([site])
    job = job_of(run, kind, site="ward" if kind is TaskKind.TRAIN else "", round_=1)
    body: dict[str, Any]
    if kind is TaskKind.AGGREGATE:
        body = aggregation_job(run, job, settings)
    else:
        body = trainer_job(run, job, site if kind is TaskKind.TRAIN else None, JobResources(), settings)
    pod = body["spec"]["template"]["spec"]

    assert "hospital-ca" in [one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one]
    assert {one["name"] for one in pod["containers"][0]["env"]} >= TRUSTED

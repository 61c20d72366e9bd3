"""The least policy of docs/stores.md, on MinIO: all that the operator does to a store works with it, and nothing outside its folder."""

import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import boto3
import httpx
import pytest
from crds import ROOT
from fleet_namespace import BUCKET, store_at, store_credentials, store_endpoint

from fedpipe_operator.errors import UserError
from fedpipe_operator.store import Credentials, S3Store
from fedpipe_trainer.contract import PartsUpload
from fedpipe_trainer.parts import send_parts

pytestmark = pytest.mark.e2e

FOLDER: Final = "fedpipe/wards"
"""The page's prefix and namespace."""
LARGE: Final = 20 * 2**20
"""An object that is uploaded in parts."""


def endpoint() -> str:
    return os.environ.get("FEDPIPE_STORE_FROM_HOST") or store_endpoint()


def policy() -> dict[str, Any]:
    """The policy as the page has it."""
    (found,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "stores.md").read_text(), re.DOTALL)
    policy: dict[str, Any] = json.loads(found)
    return policy


@pytest.fixture(scope="module")
def least(cluster: None) -> Credentials:
    """A key pair that the policy limits: MinIO's AssumeRole takes one."""
    del cluster
    root = store_credentials()
    keys = {"aws_access_key_id": root.access_key, "aws_secret_access_key": root.secret_key, "region_name": "us-east-1"}
    sts = boto3.client("sts", endpoint_url=endpoint(), **keys)
    made = sts.assume_role(RoleArn="arn:aws:iam::000000000000:role/any", RoleSessionName="least", Policy=json.dumps(policy()))
    return Credentials(*(made["Credentials"][name] for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")))


def store_in(folder: str, credentials: Credentials) -> S3Store:
    return S3Store(BUCKET, folder, endpoint=endpoint(), credentials=credentials)


@pytest.fixture
def mine(least: Credentials) -> Iterator[S3Store]:
    """A run's folder in the namespace of the policy."""
    folder = f"{FOLDER}/run/{uuid.uuid4()}"
    yield store_in(folder, least)
    store_at(folder).delete("")


def test_objects_are_written_listed_read_and_deleted(mine: S3Store) -> None:
    assert mine.create("rounds/0001/result.json", b"first")
    assert not mine.create("rounds/0001/result.json", b"second")
    mine.write("plan.json", b"{}")

    assert mine.list() == ["plan.json", "rounds/0001/result.json"]
    assert (mine.read("plan.json"), mine.read("no-such-object")) == (b"{}", None)
    mine.delete("")
    assert mine.list() == []


def test_a_large_object_is_uploaded_in_parts(mine: S3Store, tmp_path: Path) -> None:
    (tmp_path / "merged").write_bytes(bytes(LARGE))

    mine.write_file("export/merged", tmp_path / "merged")

    assert mine.size("export/merged") == LARGE


def test_an_export_is_uploaded_in_parts_by_urls_and_goes_on_where_it_was(mine: S3Store, tmp_path: Path) -> None:
    (tmp_path / "merged").write_bytes(bytes(LARGE))
    upload = mine.parts_to_write("export/merged", 600, LARGE, LARGE // 2)
    assert upload is not None
    first = httpx.put(upload.parts[0], content=bytes(LARGE // 2))

    assert first.is_success
    assert send_parts(tmp_path / "merged", upload, attempts=1) == LARGE - LARGE // 2
    assert mine.size("export/merged") == LARGE


def test_an_upload_in_parts_is_gone_on_with_and_ended_though_no_uploads_of_the_bucket_may_be_listed(mine: S3Store) -> None:
    first, again = (mine.parts_to_write("export/merged", 600, LARGE, LARGE // 2) for _ in range(2))
    assert first is not None
    assert again is not None
    assert upload_of(first) == upload_of(again)

    mine.abort_uploads("export/merged")

    assert httpx.put(first.parts[0], content=b"x").status_code == 404


def upload_of(upload: PartsUpload) -> str:
    return httpx.URL(upload.finish).params["uploadId"]


def test_urls_and_forms_that_it_signs_are_accepted(mine: S3Store) -> None:
    form = mine.form_to_write("updates/a/result.json", 60, 10)
    assert form is not None
    posted = httpx.post(form.url, data=dict(form.fields), files={"file": ("result.json", b"{}")})
    put = httpx.put(mine.url_to_write("updates/a/adapter", 60), content=b"factors")

    assert (posted.status_code, put.status_code) == (204, 200)
    assert httpx.get(mine.url_to_read("updates/a/adapter", 60)).content == b"factors"


@pytest.mark.parametrize("folder", ["fedpipe/labs", "fedpipe/wards-of-others", "models"])
def test_another_folder_can_neither_be_listed_nor_read_nor_written(least: Credentials, folder: str) -> None:
    other, theirs = store_in(f"{folder}/run", least), store_at(f"{folder}/run")
    theirs.write("plan.json", b"theirs")
    try:
        for call in (other.list, lambda: other.read("plan.json"), lambda: other.write("plan.json", b"mine")):
            with pytest.raises(UserError, match="StoreDenied"):
                call()
        assert httpx.get(other.url_to_read("plan.json", 60)).status_code == 403
        assert theirs.read("plan.json") == b"theirs"
    finally:
        theirs.delete("")

"""A run on S3 that cannot begin says what is wrong and where, before any trainer starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from local_runs import Fleet
from s3_servers import BUCKET, ENVIRONMENT, Server
from typer.testing import CliRunner

from fedpipe_operator.cli import app_for

Refused = Callable[..., str]


@pytest.fixture
def refused(fleet: Fleet, nanio: Server, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs the fleet with another model or store and in another environment; what is printed when it fails."""

    def run(*, model: str | None = None, env: dict[str, str] | None = None, **store: Any) -> str:
        fleet.change("FederatedFineTune", store={"bucket": BUCKET, "prefix": "runs", "endpoint": nanio.endpoint} | store)
        if model is not None:
            fleet.change("FederatedFineTune", model={"source": model})
        for name, value in (ENVIRONMENT | {"AWS_MAX_ATTEMPTS": "1"} | (env or {})).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials it found first
        arguments = ["run", str(fleet.folder), "--output", str(fleet.folder / "runs"), "--s3"]
        result = CliRunner().invoke(app_for(arguments), arguments)
        assert result.exit_code == 1, result.output
        assert jobs_started(fleet.folder) == []
        return result.output

    return run


def jobs_started(folder: Path) -> list[Path]:
    return list((folder / "runs/default/toy/jobs").glob("*"))


def test_a_model_that_is_not_in_the_bucket_is_named(refused: Refused, nanio: Server) -> None:
    printed = refused(model="s3://fedpipe/models/nowhere")

    assert f"ModelMissing: spec.model.source s3://fedpipe/models/nowhere: bucket fedpipe at {nanio.endpoint}" in printed
    assert "there is no models/nowhere/config.json" in printed


def test_a_models_bucket_that_is_missing_is_named(refused: Refused) -> None:
    assert "BucketMissing: spec.model.source s3://no-such-bucket/toy" in refused(model="s3://no-such-bucket/toy")


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_told_with_the_store_they_were_for(refused: Refused, nanio: Server, name: str) -> None:
    printed = refused(env={name: "wrong"})

    assert f"StoreDenied: bucket fedpipe at {nanio.endpoint}" in printed
    assert "check the credentials" in printed


def test_a_store_that_never_answered_is_told_at_once_and_not_waited_for(refused: Refused) -> None:
    printed = refused(endpoint="http://127.0.0.1:1")

    assert "StoreUnreachable: bucket fedpipe at http://127.0.0.1:1" in printed
    assert "check the endpoint's address" in printed
    assert "waiting" not in printed


def test_a_stores_bucket_that_is_missing_is_named(refused: Refused) -> None:
    assert "BucketMissing: bucket no-such-bucket" in refused(bucket="no-such-bucket")

"""A run on S3 that cannot start fails with what is wrong and where, before any trainer starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from local_runs import Fleet
from s3_servers import BUCKET, ENVIRONMENT, Server
from typer.testing import CliRunner

from fedpipe_operator.cli import app_for

FailedRun = Callable[..., str]


@pytest.fixture
def failed_run(fleet: Fleet, nanio: Server, monkeypatch: pytest.MonkeyPatch) -> FailedRun:
    """Runs the fleet with another model, store or environment; the output of the failure."""

    def run(*, model: str | None = None, env: dict[str, str] | None = None, **store: Any) -> str:
        fleet.change("FederatedFineTune", store={"bucket": BUCKET, "prefix": "runs", "endpoint": nanio.endpoint} | store)
        if model is not None:
            fleet.change("FederatedFineTune", model={"source": model})
        for name, value in (ENVIRONMENT | {"AWS_MAX_ATTEMPTS": "1"} | (env or {})).items():
            monkeypatch.setenv(name, value)
        arguments = ["run", str(fleet.folder), "--output", str(fleet.folder / "runs"), "--s3"]
        result = CliRunner().invoke(app_for(arguments), arguments)
        assert result.exit_code == 1, result.output
        assert jobs_started(fleet.folder) == []
        return result.output

    return run


def jobs_started(folder: Path) -> list[Path]:
    return list((folder / "runs/default/toy/jobs").glob("*"))


def test_the_error_names_a_model_that_is_not_in_the_bucket(failed_run: FailedRun, nanio: Server) -> None:
    output = failed_run(model="s3://fedpipe/models/nowhere")

    assert f"ModelMissing: spec.model.source s3://fedpipe/models/nowhere: bucket fedpipe at {nanio.endpoint}" in output
    assert "there is no models/nowhere/config.json" in output


def test_the_error_names_a_missing_bucket_of_the_model(failed_run: FailedRun) -> None:
    assert "BucketMissing: spec.model.source s3://no-such-bucket/toy" in failed_run(model="s3://no-such-bucket/toy")


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_the_error_for_wrong_credentials_names_the_store(failed_run: FailedRun, nanio: Server, name: str) -> None:
    output = failed_run(env={name: "wrong"})

    assert f"StoreDenied: bucket fedpipe at {nanio.endpoint}" in output
    assert "check the credentials" in output


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_the_key_pair_is_in_the_environment_and_nowhere_else(
    failed_run: FailedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    profile = tmp_path / "credentials"
    profile.write_text("[default]\naws_access_key_id = operator\naws_secret_access_key = a-secret-of-the-tests\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))

    assert f"CredentialsMissing: the environment has no {name}: set the key pair of the run's bucket" in failed_run(env={name: ""})


def test_a_store_that_was_never_reachable_is_an_error_without_retries(failed_run: FailedRun) -> None:
    output = failed_run(endpoint="http://127.0.0.1:1")

    assert "StoreUnreachable: bucket fedpipe at http://127.0.0.1:1" in output
    assert "check the endpoint's address" in output
    assert "retrying" not in output


def test_the_error_names_a_missing_bucket_of_the_store(failed_run: FailedRun) -> None:
    assert "BucketMissing: bucket no-such-bucket" in failed_run(bucket="no-such-bucket")

"""What a run's session may do in the store that the operator's identity opens: pure, from settings and the run's spec."""

import json
from typing import Any

import pytest
from stand_in_runs import a_run

from fedpipe_operator.api import FineTuneSpec
from fedpipe_operator.store_identity import StoreIdentity

FOLDER = "fedpipe/wards/toy/uid-1"
IDENTITY = StoreIdentity(role_arn="arn:minio:iam:::role/oxnUw3DAuQF1uggjXGxI2AmW8IA", models=("fedpipe/models", "hub"))
AWS = "arn:aws:iam::123456789012:role/fedpipe"


def spec_with(source: str) -> FineTuneSpec:
    return a_run(model={"source": source}).spec


def policy(source: str, identity: StoreIdentity = IDENTITY, folder: str = FOLDER) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(identity.session_policy(spec_with(source), "fedpipe", folder))["Statement"]
    return found


def test_a_session_may_list_read_write_and_delete_in_the_folder_of_its_run_and_nothing_else() -> None:
    assert policy("hf://org/model@main") == [
        {
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": "arn:aws:s3:::fedpipe",
            "Condition": {"StringLike": {"s3:prefix": f"{FOLDER}/*"}},
        },
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
            "Resource": f"arn:aws:s3:::fedpipe/{FOLDER}/*",
        },
    ]


@pytest.mark.parametrize(
    ("source", "bucket", "within"), [("s3://fedpipe/models/bert", "fedpipe", "models/*"), ("s3://hub/org/bert", "hub", "*")]
)
def test_it_may_read_the_administrators_folder_of_models_that_its_run_names(source: str, bucket: str, within: str) -> None:
    assert policy(source)[2:] == [
        {
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": f"arn:aws:s3:::{bucket}",
            "Condition": {"StringLike": {"s3:prefix": within}},
        },
        {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": f"arn:aws:s3:::{bucket}/{within}"},
    ]


@pytest.mark.parametrize(
    "source",
    [
        "s3://other-team/model",
        "s3://fedpipe/fedpipe/labs/their-run/uid-2/export/merged",
        "s3://fedpipe/models-of-others/bert",
        "s3://fedpipe//models/bert",
        "s3://hub-of-others/bert",
        "s3://*/models/bert",
        "s3://fedpipe/model*/bert",
    ],
)
def test_a_model_elsewhere_is_refused_with_where_models_may_be_and_no_policy_opens_it(source: str) -> None:
    assert IDENTITY.model_problem(spec_with(source)) == (
        f"spec.model.source: the operator's identity reads no model in {source}; it reads those in fedpipe/models, hub"
    )
    assert len(policy(source)) == 2


@pytest.mark.parametrize("source", ["s3://fedpipe/models/*", "s3://fedpipe/models/${aws:userid}/../../fedpipe"])
def test_what_a_policy_reads_as_a_wildcard_never_comes_from_a_run(source: str) -> None:
    assert "aws:userid" not in json.dumps(policy(source))
    assert policy(source)[-1]["Resource"] == "arn:aws:s3:::fedpipe/models/*"


def test_where_the_administrator_names_no_models_every_model_in_a_bucket_is_refused() -> None:
    identity = StoreIdentity(role_arn=IDENTITY.role_arn)

    assert identity.model_problem(spec_with("hf://org/model@main")) is None
    assert identity.model_problem(spec_with("s3://fedpipe/models/bert")) == (
        "spec.model.source: the operator's identity reads no model in s3://fedpipe/models/bert, nor anywhere else"
    )


@pytest.mark.parametrize(
    ("role", "bucket"),
    [
        ("arn:aws-cn:iam::123456789012:role/fedpipe", "arn:aws-cn:s3:::fedpipe"),
        ("arn:aws-us-gov:iam::123456789012:role/fedpipe", "arn:aws-us-gov:s3:::fedpipe"),
        ("arn:minio:iam:::role/oxnUw3DAuQF1uggjXGxI2AmW8IA", "arn:aws:s3:::fedpipe"),
    ],
)
def test_buckets_are_named_in_the_partition_of_aws_that_the_role_is_of(role: str, bucket: str) -> None:
    assert policy("hf://org/model@main", StoreIdentity(role_arn=role))[0]["Resource"] == bucket


def test_in_aws_a_session_may_use_the_roles_keys_by_way_of_s3_for_buckets_that_are_encrypted_with_one() -> None:
    assert policy("hf://org/model@main", StoreIdentity(role_arn=AWS))[2:] == [
        {
            "Effect": "Allow",
            "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
            "Resource": "*",
            "Condition": {"StringLike": {"kms:ViaService": "s3.*"}},
        }
    ]
    assert len(policy("hf://org/model@main", StoreIdentity(role_arn="arn:aws:iam::a-tenant:role/fedpipe"))) == 2


def test_the_policy_of_a_long_name_fits_into_a_request() -> None:
    folder = "/".join(("p" * 100, "n" * 63, "r" * 63, "u" * 36))
    models = StoreIdentity(role_arn=AWS, models=(f"{'b' * 63}/{'m' * 100}",))

    assert len(models.session_policy(spec_with(f"s3://{models.models[0]}/bert"), "b" * 63, folder)) < 2048

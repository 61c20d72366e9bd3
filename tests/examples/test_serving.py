"""The files of `examples/serving`: by the types of what reads them, and by where an export is written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from crds import ROOT
from kubernetes_types import problems

from fedpipe_operator import names
from fedpipe_operator.api import PlanningSpec

FOLDER = ROOT / "examples" / "serving"
FILES = sorted(FOLDER.glob("*.yaml"))
KSERVE: dict[str, Any] = json.loads((ROOT / "tests" / "helpers" / "kserve_types.json").read_text())
TYPES = {
    ("apps/v1", "Deployment"): "V1Deployment",
    ("v1", "Service"): "V1Service",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def document(name: str, kind: str) -> dict[str, Any]:
    (found,) = [one for one in documents(FOLDER / name) if one["kind"] == kind]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_field_is_one_of_its_kind(file: Path) -> None:
    found = [(one["kind"], problems(one, TYPES[one["apiVersion"], one["kind"]], KSERVE)) for one in documents(file)]

    assert found
    assert [problem for problem in found if problem[1]] == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("spec.predictor.model.storageURI", "s3://a/b", ".spec.predictor.model.storageURI: V1beta1ModelSpec has no such field"),
        ("spec.predictor.minReplicas", "1", ".spec.predictor.minReplicas: '1' is no int"),
        ("spec.predictor.model.resources.limit", {}, ".spec.predictor.model.resources.limit: V1ResourceRequirements has no such field"),
        ("spec.predictor.model.env", [{"value": "a"}], ".spec.predictor.model.env[0].name: Field required"),
    ],
)
def test_a_field_that_is_wrong_is_found(path: str, value: object, problem: str) -> None:
    service = document("kserve-merged.yaml", "InferenceService")
    *parents, last = path.split(".")
    part = service
    for parent in parents:
        part = part[parent]
    part[last] = value

    assert problems(service, "V1beta1InferenceService", KSERVE) == [problem]


def test_they_read_what_an_export_writes() -> None:
    addresses = re.findall(r"s3://\S+", "".join(file.read_text() for file in FILES))
    run = f"s3://fedpipe/{names.run_prefix('fedpipe', 'clinic', 'notes', 'UID')}"

    assert sorted(address.rstrip("/") for address in addresses) == [f"{run}/{names.EXPORT_ADAPTER}", f"{run}/{names.EXPORT_MERGED}"]


def test_vllm_is_given_room_for_the_largest_rank_that_a_run_plans_by_default() -> None:
    (server,) = document("vllm-adapter.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    options = dict(one.removeprefix("--").partition("=")[::2] for one in server["args"])

    assert int(options["max-lora-rank"]) >= PlanningSpec().max_rank
    assert {"model", "enable-lora", "lora-modules"} <= options.keys()
    assert options["lora-modules"].endswith("=/adapter")


def test_a_service_and_a_service_account_are_of_what_they_serve() -> None:
    deployment, service = (document("vllm-adapter.yaml", kind) for kind in ("Deployment", "Service"))
    account, inference = (document("kserve-merged.yaml", kind) for kind in ("ServiceAccount", "InferenceService"))

    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert inference["spec"]["predictor"]["serviceAccountName"] == account["metadata"]["name"]

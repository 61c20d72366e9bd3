"""What an API server with an earlier chart's CRDs has stored, with their defaults, is valid for the operator of today."""

import copy
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from charts import ROOT
from smallest_documents import RUN_DOCUMENT, SITE_DOCUMENT

from fedpipe_operator.api import EdgeSite, FederatedFineTune
from fedpipe_operator.api.parse import parse_object

EARLIER = ROOT / "tests" / "e2e" / "charts" / "fedpipe-before-guards.tgz"


def schema_of(kind: str) -> Mapping[str, Any]:
    """The earlier schema of a kind."""
    with tarfile.open(EARLIER) as package:
        files = [package.extractfile(name) for name in package.getnames() if "/files/crds/" in name]
        crds = [yaml.safe_load(file) for file in files if file is not None]
    (found,) = [crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for crd in crds if crd["spec"]["names"]["kind"] == kind]
    schema: Mapping[str, Any] = found
    return schema


def with_defaults(schema: Mapping[str, Any], value: Any) -> Any:
    """The value as an API server stores it."""
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), one) for one in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    defaults = {name: copy.deepcopy(inner["default"]) for name, inner in properties.items() if "default" in inner}
    return {name: with_defaults(properties.get(name, {}), one) for name, one in (defaults | value).items()}


@pytest.mark.parametrize(
    ("kind", "document"), [(FederatedFineTune, RUN_DOCUMENT), (EdgeSite, SITE_DOCUMENT)], ids=["FederatedFineTune", "EdgeSite"]
)
def test_an_object_that_an_earlier_crd_stored_is_valid(kind: type[Any], document: dict[str, Any]) -> None:
    spec = with_defaults(schema_of(kind.__name__)["properties"]["spec"], document["spec"])

    assert spec != document["spec"], "the earlier CRD had defaults"
    assert parse_object(document | {"spec": spec}, kind)[1] == []

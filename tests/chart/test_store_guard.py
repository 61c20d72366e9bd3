"""What the chart's admission policy for runs reads: fields that exist, and that may be left out only where it says so.

Its expressions are evaluated by the API server alone: tests/e2e/test_store_guard.py has it decide a table of cases.
"""

import re

import pytest
import yaml
from charts import CHART

from fedpipe_operator.api import FineTuneSpec, StoreSpec
from fedpipe_operator.api.finetune import ModelSpec
from fedpipe_operator.api.meta import LABEL_OPERATOR_CLASS
from fedpipe_operator.api.tracking import TrackingSpec

TEXT = (CHART / "files" / "store-guard.yaml").read_text()
GUARD = yaml.safe_load(TEXT)


def test_runs_are_guarded_when_they_are_created_or_name_another_store_and_failures_deny() -> None:
    (rule,) = GUARD["matchConstraints"]["resourceRules"]
    of_class, condition = GUARD["matchConditions"]

    assert (rule["apiGroups"], rule["resources"], rule["operations"]) == (["fedpipe.io"], ["federatedfinetunes"], ["CREATE", "UPDATE"])
    assert GUARD["failurePolicy"] == "Fail"
    assert condition["expression"].startswith("request.operation == 'CREATE' || object.spec.model != oldObject.spec.model")
    assert "has(object.spec.store) && object.spec.store != oldObject.spec.store" in condition["expression"]
    assert f"object.metadata.labels['{LABEL_OPERATOR_CLASS}'] : '') == 'CLASS'" in of_class["expression"]
    assert f"oldObject.metadata.labels['{LABEL_OPERATOR_CLASS}'] : '') != 'CLASS'" in condition["expression"]


@pytest.mark.parametrize(("part", "field"), sorted(set(re.findall(r"object\.spec\.(\w+)\.(\w+)", TEXT))))
def test_a_field_that_is_read_exists_and_is_asked_for_if_it_may_be_left_out(part: str, field: str) -> None:
    model = {"store": StoreSpec, "model": ModelSpec, "tracking": TrackingSpec}[part]

    assert FineTuneSpec.model_fields[part].is_required() or f"has(object.spec.{part})" in TEXT
    (found,) = [one for one in model.model_fields.values() if one.alias == field]
    assert found.is_required() or f"has(object.spec.{part}.{field})" in TEXT

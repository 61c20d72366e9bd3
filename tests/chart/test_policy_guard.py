"""What the chart's admission policy guards: which fields of an EdgeSite are the data owner's, and by which right they are set.

Its expressions are evaluated by the API server alone: tests/e2e/test_policy_guard.py has users try it.
"""

import yaml
from charts import CHART, granted, rules

from fedpipe_operator.api import EdgeSiteSpec

GUARD = yaml.safe_load((CHART / "files" / "policy-guard.yaml").read_text())


def test_sites_are_guarded_when_they_are_created_or_changed_and_failures_deny() -> None:
    (rule,) = GUARD["matchConstraints"]["resourceRules"]

    assert (rule["apiGroups"], rule["resources"], rule["operations"]) == (["fedpipe.io"], ["edgesites"], ["CREATE", "UPDATE"])
    assert GUARD["failurePolicy"] == "Fail"


def test_the_guarded_fields_exist() -> None:
    (condition,) = GUARD["matchConditions"]

    for field in ("policy", "data", "cache", "modelClaims"):
        assert field in {one.alias for one in EdgeSiteSpec.model_fields.values()}
        assert f"object.spec.{field} != oldObject.spec.{field}" in condition["expression"]
    assert "request.operation == 'CREATE'" in condition["expression"]


def test_the_right_that_is_asked_for_is_the_one_that_an_admin_has_and_no_other_role() -> None:
    (validation,) = GUARD["validations"]
    right = ("fedpipe.io", "edgesites/policy", "update")

    assert "authorizer.group('fedpipe.io').resource('edgesites').subresource('policy')" in validation["expression"]
    assert ".check('update').allowed()" in validation["expression"]
    assert {role for role, its_rules in rules("users").items() if right in granted(its_rules)} == {"admin"}
    assert right not in granted(rules("operator"))

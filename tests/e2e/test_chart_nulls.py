"""`null` as any value: Helm's way to remove a default. It is refused by its path, or the operator starts. Needs Helm and no cluster."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from charts import CHART, Plain, coalesced, complaint, of_kind, rendered, rendered_tests, values
from jsonschema import Draft7Validator

from fedpipe_operator import settings as environment
from fedpipe_operator.settings import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

SCHEMA: Final = Draft7Validator(json.loads((CHART / "values.schema.json").read_text()))


def paths(found: Plain, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every value, also of those within a default."""
    for name, value in found.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from paths(value, (*above, name))


def null_at(path: tuple[str, ...]) -> Plain:
    first, *others = path
    return {first: null_at(tuple(others)) if others else None}


def problems(path: tuple[str, ...]) -> list[str]:
    """What the schema says of the values once this one is null."""
    return [error.message for error in SCHEMA.iter_errors(coalesced(values(), null_at(path)))]


API_SERVER_S: Final = ("networkPolicy", "apiServerCIDRs")
"""Of which Helm asks the cluster if they are not given."""
ALL: Final = [path for path in paths(values()) if path != API_SERVER_S]
REFUSED, TAKEN = ([path for path in ALL if bool(problems(path)) is refused] for refused in (True, False))


def settings_with(given: Plain) -> Settings:
    """What the operator reads at its start."""
    (deployment,) = of_kind(rendered(given), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return environment.read({one["name"]: one.get("value") or "" for one in container["env"]})


@pytest.mark.parametrize("path", REFUSED, ids=".".join)
def test_a_value_that_must_be_there_is_missed_by_its_name(path: tuple[str, ...]) -> None:
    assert problems(path) == [f"{path[-1]!r} is a required property"]


def test_helm_names_the_value_that_is_missing_and_where() -> None:
    said = complaint({"reports.audience": None})

    assert "at '/reports': missing property 'audience'" in said


@pytest.mark.parametrize("path", TAKEN, ids=".".join)
def test_without_any_other_value_the_chart_is_rendered_and_the_operator_starts(path: tuple[str, ...]) -> None:
    settings_with({".".join(path): None})


def test_without_addresses_of_the_api_server_helm_says_how_to_give_them() -> None:
    assert "networkPolicy.apiServerCIDRs is empty" in complaint({".".join(API_SERVER_S): None})


@pytest.mark.parametrize(
    "given",
    [
        {"exportJob.resources.limits": None},
        {"exportJob.resources.limits": {"memory": None, "cpu": 1.5}},
        {"aggregationJob.resources.limits.memory": None},
        {"exportJob.tolerations": [{"operator": "Exists", "tolerationSeconds": None}]},
        {"exportJob.affinity": {"nodeAffinity": None}},
        {"jobPodSecurityContext": {"runAsUser": 1000670000, "fsGroup": None}},
        {"global.imagePullSecrets": None, "global.imageRegistry": None},
        {"extraVolumes": [{"name": "x", "emptyDir": None}]},
        {"podSecurityContext.supplementalGroups": None, "affinity.podAffinity": None},
    ],
    ids=str,
)
def test_null_within_what_a_user_gives_is_as_if_it_were_not_given(given: Plain) -> None:
    settings_with(given)


def test_null_means_none_where_there_can_be_none() -> None:
    given: Any = dict.fromkeys(
        ("storePolicy", "defaultStore", "storeIdentity", "proxy", "caBundle", "huggingFaceTokenSecretRef", "exportJob")
    )
    found = settings_with(given | {"livenessProbe": None})
    (container,) = of_kind(rendered({"livenessProbe": None}), "Deployment")[0]["spec"]["template"]["spec"]["containers"]

    assert (found.default_store, found.store_identity.role_arn, found.proxy.https, found.ca_bundle.config_map_name) == (None, "", "", "")
    assert (found.store_policy.rules, found.export_job.resources.requests, found.export_job.resources.limits) == ({}, {}, {})
    assert ("livenessProbe" in container, "readinessProbe" in container) == (False, True)
    assert of_kind(rendered_tests(given | {"test.store": None}), "Pod") != []

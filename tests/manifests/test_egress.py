"""What the administrator's settings put into each Job's pod: certificates, a proxy, a hub's token, resources. And nothing else."""

from dataclasses import replace
from typing import Any

import pytest
from stand_in_cluster import SETTINGS
from stand_in_runs import a_run, a_site

from fedpipe_operator.backend import JobResources, TaskKind
from fedpipe_operator.manifests import aggregation_job, trainer_job
from fedpipe_operator.pod_settings import CaBundle, PodDefaults, Proxy, SecretKey
from fedpipe_operator.rounds import job_of
from fedpipe_operator.settings import Settings

Plain = dict[str, Any]

HUB = {"source": "hf://org/name@main"}
CA = CaBundle(config_map_name="fedpipe-ca", key="bundle.pem")
PROXY = Proxy(http="http://proxy:3128", https="http://proxy:3129", no_proxy=".svc")
TOKEN = SecretKey(name="hub", key="token")
PROXY_VARIABLES = [
    {"name": "HTTP_PROXY", "value": "http://proxy:3128"},
    {"name": "HTTPS_PROXY", "value": "http://proxy:3129"},
    {"name": "NO_PROXY", "value": ".svc"},
]
TOKEN_VARIABLE = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token", "optional": True}}}
GIVEN: Plain = {
    "resources": {"requests": {"cpu": "2", "memory": "8Gi", "ephemeral-storage": "20Gi"}, "limits": {"cpu": "2", "memory": "8Gi"}},
    "nodeSelector": {"kind": "services"},
    "tolerations": [{"key": "services", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "important",
}
SCHEDULING = {name: value for name, value in GIVEN.items() if name != "resources"}
EVERYWHERE = ("train", "export", "aggregate")


def pod(kind: str, settings: Settings = SETTINGS, *, model: Plain = HUB, **site: Any) -> Plain:
    """The spec of the pod of a Job of this kind."""
    ward = a_site("ward", **site)
    run = a_run([ward], model=model)
    if kind == "aggregate":
        body = aggregation_job(run, job_of(run, TaskKind.AGGREGATE, round_=1), settings)
    elif kind == "export":
        body = trainer_job(run, job_of(run, TaskKind.EXPORT), None, JobResources(), settings)
    else:
        body = trainer_job(run, job_of(run, kind, site="ward", round_=1), ward, JobResources(), settings)
    found: Plain = body["spec"]["template"]["spec"]
    return found


def container(kind: str, settings: Settings = SETTINGS, **more: Any) -> Plain:
    found: Plain = pod(kind, settings, **more)["containers"][0]
    return found


def without(kind: str, spec: Plain, *names: str) -> tuple[Plain, Plain]:
    """A pod without these fields of itself and of its container, and the pod that no setting changes without them."""
    both = [
        {name: value for name, value in one.items() if name not in (*names, "containers")}
        | {"containers": [{name: value for name, value in one["containers"][0].items() if name not in names}]}
        for one in (spec, pod(kind))
    ]
    return both[0], both[1]


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_every_pod_trusts_the_administrators_certificates_and_differs_in_nothing_else(kind: str) -> None:
    spec = pod(kind, replace(SETTINGS, ca_bundle=CA))
    (trusting,) = spec["containers"]
    before = pod(kind)

    assert spec["volumes"][-1] == {"name": "ca", "configMap": {"name": "fedpipe-ca", "items": [{"key": "bundle.pem", "path": "ca.crt"}]}}
    assert trusting["volumeMounts"][-1] == {"name": "ca", "mountPath": "/etc/fedpipe/ca", "readOnly": True}
    assert trusting["env"] == [
        *before["containers"][0]["env"],
        *({"name": name, "value": "/etc/fedpipe/ca/ca.crt"} for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")),
    ]
    changed, plain = without(kind, spec, "env", "volumes", "volumeMounts")
    assert changed == plain


def test_a_sites_own_certificates_replace_those_of_the_administrator() -> None:
    spec = pod("train", replace(SETTINGS, ca_bundle=CA), podTemplate={"caConfigMap": {"name": "hospital-ca"}})

    assert [volume["configMap"]["name"] for volume in spec["volumes"] if volume["name"] == "ca"] == ["hospital-ca"]


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_every_pod_goes_through_the_proxy_and_differs_in_nothing_else(kind: str) -> None:
    spec = pod(kind, replace(SETTINGS, proxy=PROXY))

    assert spec["containers"][0]["env"] == [*PROXY_VARIABLES, *container(kind)["env"]]
    changed, plain = without(kind, spec, "env")
    assert changed == plain


def test_a_part_of_a_proxy_that_is_not_given_is_no_variable() -> None:
    assert container("train", replace(SETTINGS, proxy=Proxy(https="http://proxy:3129")))["env"][0] == PROXY_VARIABLES[1]


def test_a_sites_own_proxy_and_token_count() -> None:
    own = [{"name": "HTTPS_PROXY", "value": "http://ward:1"}, {"name": "HF_TOKEN", "value": "public"}]
    settings = replace(SETTINGS, proxy=PROXY, hugging_face_token_secret_ref=TOKEN)
    environment = container("train", settings, podTemplate={"env": own})["env"]

    assert [one for one in environment if one["name"] in {"HTTPS_PROXY", "HF_TOKEN"}] == own
    assert PROXY_VARIABLES[0] in environment


@pytest.mark.parametrize("kind", ["profile", "train", "evaluate", "export"])
def test_the_hubs_token_is_given_to_pods_that_fetch_a_model_from_a_hub(kind: str) -> None:
    assert container(kind, replace(SETTINGS, hugging_face_token_secret_ref=TOKEN))["env"] == [TOKEN_VARIABLE, *container(kind)["env"]]


@pytest.mark.parametrize("kind", ["profile", "train", "evaluate", "dry-export", "export"])
def test_the_hub_s_mirror_is_given_to_pods_that_fetch_a_model_from_a_hub_and_to_no_others(kind: str) -> None:
    settings = replace(SETTINGS, hugging_face_endpoint="https://hub.example")

    assert container(kind, settings)["env"] == [{"name": "HF_ENDPOINT", "value": "https://hub.example"}, *container(kind)["env"]]
    assert container(kind, settings, model={"source": "pvc://models/toy"}) == container(kind, model={"source": "pvc://models/toy"})


def test_a_site_s_own_mirror_counts_before_the_chart_s() -> None:
    settings = replace(SETTINGS, hugging_face_endpoint="https://hub.example")
    own = {"name": "HF_ENDPOINT", "value": "https://mirror.ward"}

    found = container("train", settings, podTemplate={"env": [own]})["env"]

    assert [one for one in found if one["name"] == "HF_ENDPOINT"] == [own]


@pytest.mark.parametrize("kind", ["profile", "train", "evaluate"])
def test_a_site_s_own_token_counts_at_its_trainers_before_the_chart_s(kind: str) -> None:
    own = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "ward-hub", "key": "HF_TOKEN"}}}
    settings = replace(SETTINGS, hugging_face_token_secret_ref=TOKEN)
    given = {"huggingFaceTokenSecretRef": {"name": "ward-hub"}}

    assert [one for one in container(kind, settings, **given)["env"] if one["name"] == "HF_TOKEN"] == [own]
    assert [one for one in container(kind, **given)["env"] if one["name"] == "HF_TOKEN"] == [own]


def test_a_site_s_own_token_is_given_to_no_export_and_not_for_a_model_elsewhere() -> None:
    given = {"huggingFaceTokenSecretRef": {"name": "ward-hub"}}

    assert pod("export", **given) == pod("export")
    assert pod("train", model={"source": "s3://models/base"}, **given) == pod("train", model={"source": "s3://models/base"})


@pytest.mark.parametrize(
    ("kind", "source"), [("aggregate", "hf://org/name@main"), ("train", "s3://models/base"), ("export", "pvc://models/base")]
)
def test_the_hubs_token_is_given_to_no_other_pod(kind: str, source: str) -> None:
    model = {"source": source}

    assert pod(kind, replace(SETTINGS, hugging_face_token_secret_ref=TOKEN), model=model) == pod(kind, model=model)


@pytest.mark.parametrize(("kind", "setting"), [("export", "export_job"), ("aggregate", "aggregation_job")])
def test_a_job_of_no_site_has_the_resources_and_the_scheduling_that_are_given_for_it(kind: str, setting: str) -> None:
    spec = pod(kind, replace(SETTINGS, **{setting: PodDefaults.model_validate(GIVEN)}))

    assert spec["containers"][0]["resources"] == GIVEN["resources"]
    assert {name: spec[name] for name in SCHEDULING} == SCHEDULING
    changed, plain = without(kind, spec, "resources", *SCHEDULING)
    assert changed == plain


def test_what_is_given_for_one_kind_of_job_changes_no_other() -> None:
    given = PodDefaults.model_validate(GIVEN)

    assert pod("aggregate", replace(SETTINGS, export_job=given)) == pod("aggregate")
    assert pod("export", replace(SETTINGS, aggregation_job=given)) == pod("export")
    assert pod("train", replace(SETTINGS, export_job=given, aggregation_job=given)) == pod("train")


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_the_user_of_every_pod_may_be_left_to_the_cluster(kind: str) -> None:
    spec = pod(kind, replace(SETTINGS, job_pod_security_context={"runAsNonRoot": True}))

    assert spec["securityContext"] == {"runAsNonRoot": True}
    changed, plain = without(kind, spec, "securityContext")
    assert changed == plain
    assert spec["containers"][0]["securityContext"] == container(kind)["securityContext"]

"""The objects that Helm renders from the chart. Needs Helm and no cluster."""

import json
from typing import Any

import pytest
import yaml
from charts import API_SERVER, CHART, ROOT, Plain, granted, helm, of_kind, rendered, rules, set_values

from fedpipe_operator import settings as environment
from fedpipe_operator.api import StoreSpec
from fedpipe_operator.api.meta import SecretReference
from fedpipe_operator.cli.followed_log import OPERATOR_LABELS, is_operator
from fedpipe_operator.cli.logs import OPERATOR
from fedpipe_operator.pod_settings import REPORTS_TLS, CaBundle, PodDefaults, Proxy, ReportServer, Resources, SecretKey
from fedpipe_operator.settings import Settings
from fedpipe_operator.store_policy import StorePolicy, StoreRule

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

GUARD = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", *GUARD)
NARROW: Plain = {"namespaces": ["ward", "lab"]}
WIDE: Plain = {"rbac.scope": "cluster"}
DIGEST = "sha256:" + "0123456789abcdef" * 4


def container(objects: list[Plain]) -> Plain:
    """The operator's container."""
    found: Plain = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    return found


def settings_from(objects: list[Plain]) -> Settings:
    return environment.read({one["name"]: one.get("value", "") for one in container(objects)["env"]})


def roles_of_kinds(objects: list[Plain]) -> list[Plain]:
    """The operator's Roles, without that on its Lease."""
    return [role for role in of_kind(objects, "Role") if not role["metadata"]["name"].endswith("-lease")]


def pod_spec(objects: list[Plain]) -> Plain:
    """The operator's."""
    found: Plain = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
    return found


def test_helm_lint_finds_nothing() -> None:
    done = helm("lint", "--strict", CHART)

    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


def test_the_crds_are_rendered_unchanged_and_kept_on_uninstall() -> None:
    crds = of_kind(rendered(), "CustomResourceDefinition")
    sources = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "crds").glob("*.yaml"))]

    assert [crd["spec"] for crd in crds] == [source["spec"] for source in sources]
    assert [crd["metadata"]["name"] for crd in crds] == [source["metadata"]["name"] for source in sources]
    assert {crd["metadata"]["annotations"]["helm.sh/resource-policy"] for crd in crds} == {"keep"}


def test_the_crds_may_be_deleted_with_the_release_or_left_out() -> None:
    assert all("annotations" not in crd["metadata"] for crd in of_kind(rendered({"crds.keep": False}), "CustomResourceDefinition"))
    assert of_kind(rendered({"crds.enabled": False}), "CustomResourceDefinition") == []


def test_a_chart_without_its_crds_is_not_rendered(tmp_path: Any) -> None:
    packed = helm("package", CHART, "--destination", tmp_path)
    assert packed.returncode == 0
    whole = helm("template", "fedpipe", next(tmp_path.glob("*.tgz")), *set_values(API_SERVER))
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in ("Chart.yaml", "values.yaml", "templates"):
        (copied / name).symlink_to(CHART / name)
    incomplete = helm("template", "fedpipe", copied, *set_values(API_SERVER))

    assert whole.returncode == 0
    assert "kind: CustomResourceDefinition" in whole.stdout
    assert incomplete.returncode != 0
    assert "files/crds" in incomplete.stderr


def test_the_operator_reads_its_defaults() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]

    assert settings_from(rendered(namespace="wards")) == Settings(
        trainer_image=f"fedpipe-trainer:{version}", operator_image=f"fedpipe-operator:{version}", namespaces=("wards",)
    )
    assert settings_from(rendered(WIDE)).namespaces == ()


def test_the_operator_reads_the_values_that_are_set() -> None:
    given = {
        "trainerImage": {"repository": "registry.example/trainer", "tag": "cpu"},
        "operatorImage": {"repository": "registry.example/operator", "digest": DIGEST},
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "ours"}, {"name": "theirs"}],
        "watchNodes": False,
        "aggregationJobThreshold": "2Gi",
        "scratch": "5G",
        "jobTtlSeconds": 12345678,
        "pendingGraceSeconds": 60,
        "maxConcurrentReconciles": 16,
        "storePolicy": {"ward": {"endpoints": ["http://minio:9000", "AWS"], "prefixes": ["runs"]}, "*": {"buckets": ["fedpipe"]}},
        "operatorClass": "canary",
        "defaultStore": {"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}},
        "caBundle": {"configMapName": "hospital-ca", "key": "bundle.pem"},
        "proxy": {"http": "http://proxy:1", "https": "http://proxy:2", "noProxy": "minio.minio,.svc"},
        "huggingFaceEndpoint": "https://hub.example/api/hf",
        "huggingFaceTokenSecretRef": {"name": "hub"},
        "exportJob": {"resources": {"requests": {"cpu": 2}, "limits": {"memory": "8Gi"}}, "tolerations": [{"operator": "Exists"}]},
        "aggregationJob": {"resources": {"limits": None}, "nodeSelector": {"a": "b"}, "priorityClassName": "high"},
        "jobPodSecurityContext": {"runAsUser": 1000670000, "runAsGroup": None, "fsGroup": None, "fsGroupChangePolicy": "Always"},
        "healthPort": 9000,
        "metricsPort": 9001,
        "reports": {"enabled": True, "port": 9002, "audience": "", "tlsSecretName": "reports"},
    }
    objects = rendered(given | NARROW)

    assert settings_from(objects) == Settings(
        trainer_image="registry.example/trainer:cpu",
        operator_image=f"registry.example/operator@{DIGEST}",
        namespaces=("ward", "lab"),
        image_pull_policy="Always",
        image_pull_secrets=("ours", "theirs"),
        watch_nodes=False,
        aggregation_job_threshold=2 * 2**30,
        scratch="5G",
        job_ttl_seconds=12345678,
        pending_grace_seconds=60,
        max_concurrent_reconciles=16,
        operator_class="canary",
        default_store=StoreSpec(bucket="fedpipe", credentials_secret_ref=SecretReference(name="store")),
        store_policy=StorePolicy(
            {"ward": StoreRule(("http://minio:9000", "AWS"), prefixes=("runs",)), "*": StoreRule(buckets=("fedpipe",))}
        ),
        ca_bundle=CaBundle(config_map_name="hospital-ca", key="bundle.pem"),
        proxy=Proxy(http="http://proxy:1", https="http://proxy:2", no_proxy="minio.minio,.svc"),
        hugging_face_endpoint="https://hub.example/api/hf",
        hugging_face_token_secret_ref=SecretKey(name="hub"),
        export_job=PodDefaults(
            resources=Resources(requests={"cpu": 2, "memory": "1Gi"}, limits={"memory": "8Gi"}), tolerations=({"operator": "Exists"},)
        ),
        aggregation_job=PodDefaults(
            resources=Resources(requests={"cpu": "500m", "memory": "1Gi"}), node_selector={"a": "b"}, priority_class_name="high"
        ),
        job_pod_security_context={
            "runAsNonRoot": True,
            "runAsUser": 1000670000,
            "fsGroupChangePolicy": "Always",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        health_port=9000,
        metrics_port=9001,
        reports=ReportServer(enabled=True, port=9002, audience="", tls_secret_name="reports"),  # noqa: S106 -- a name
    )
    assert container(objects)["image"] == f"registry.example/operator@{DIGEST}"
    assert {port["name"]: port["containerPort"] for port in container(objects)["ports"]} == {
        "health": 9000,
        "metrics": 9001,
        "reports": 9002,
    }


def test_by_default_the_operator_may_act_in_the_release_s_namespace_and_see_nodes_and_nothing_else() -> None:
    objects = rendered({"rbac.userRoles": False}, namespace="wards")

    (role,) = roles_of_kinds(objects)
    assert (role["metadata"]["namespace"], granted(role["rules"])) == ("wards", granted(rules("operator")))
    assert [(one["metadata"]["name"], granted(one["rules"])) for one in of_kind(objects, "ClusterRole")] == [
        ("wards.fedpipe.nodes", granted(rules("nodes")))
    ]


def test_the_operator_has_the_permissions_of_its_rules_in_the_cluster_if_that_is_its_scope() -> None:
    objects = rendered(WIDE | {"rbac.userRoles": False})
    roles = {role["metadata"]["name"]: granted(role["rules"]) for role in of_kind(objects, "ClusterRole")}

    assert roles == {"fedpipe.fedpipe": granted(rules("operator")), "fedpipe.fedpipe.nodes": granted(rules("nodes"))}
    assert roles_of_kinds(objects) == []


def test_the_operator_has_the_same_permissions_in_its_namespaces_and_none_elsewhere() -> None:
    narrowest = {"watchNodes": False, "rbac.userRoles": False, "rbac.guardPolicies": False, "crds.enabled": False}
    objects = rendered(NARROW | narrowest)

    assert [one["metadata"]["name"] for one in objects if one["kind"] in CLUSTER_WIDE] == []
    assert {role["metadata"]["namespace"]: granted(role["rules"]) for role in roles_of_kinds(objects)} == dict.fromkeys(
        ("ward", "lab"), granted(rules("operator"))
    )


def test_policies_of_sites_are_guarded_in_every_namespace_that_is_served() -> None:
    everywhere, narrow = ([of_kind(rendered(given), kind)[0] for kind in GUARD] for given in (WIDE, NARROW))

    for policy, binding in (everywhere, narrow):
        assert policy["spec"] == yaml.safe_load((CHART / "files" / "policy-guard.yaml").read_text())
        assert binding["spec"]["policyName"] == policy["metadata"]["name"] == "fedpipe.fedpipe.site-policies"
        assert binding["spec"]["validationActions"] == ["Deny"]
    assert "matchResources" not in everywhere[1]["spec"]
    assert narrow[1]["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"] == [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["ward", "lab"]}
    ]


def test_runs_are_guarded_by_whole_lists_of_every_namespace_and_of_the_others() -> None:
    policy, binding = store_guard({"storePolicy": {"ward": {"endpoints": ["AWS"], "prefixes": ["a<b"]}}} | NARROW)
    nothing: Plain = {"endpoints": [], "buckets": [], "prefixes": []}

    lists, *others = policy["spec"]["variables"]
    assert (lists["name"], json.loads(lists["expression"])) == (
        "lists",
        {"ward": nothing | {"endpoints": ["AWS"], "prefixes": ["a<b"]}, "*": nothing},
    )
    of_file = (CHART / "files" / "store-guard.yaml").read_text().replace("'CLASS'", "''")
    assert policy["spec"] | {"variables": others} == yaml.safe_load(of_file)
    assert (binding["spec"]["policyName"], binding["spec"]["validationActions"]) == (policy["metadata"]["name"], ["Deny"])
    assert binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"][0]["values"] == ["ward", "lab"]


def test_the_lists_of_a_release_bind_the_runs_of_its_class_and_those_that_come_to_it() -> None:
    policy, _ = store_guard({"storePolicy": {"*": {"buckets": ["fedpipe"]}}, "operatorClass": "canary"})
    of_class, names_a_store = policy["spec"]["matchConditions"]

    assert of_class["name"] == "is-of-the-class"
    assert of_class["expression"].endswith("object.metadata.labels['fedpipe.io/operator-class'] : '') == 'canary'")
    assert names_a_store["expression"].endswith("oldObject.metadata.labels['fedpipe.io/operator-class'] : '') != 'canary'")
    assert "CLASS" not in str(policy["spec"])


@pytest.mark.parametrize("given", [{}, {"storePolicy": {"*": {"buckets": ["fedpipe"]}}, "rbac.guardPolicies": False}], ids=str)
def test_without_lists_or_admission_policies_no_run_is_guarded(given: Plain) -> None:
    assert store_guard(given) == []


def store_guard(given: Plain) -> list[Plain]:
    objects = rendered(given)
    return [one for kind in GUARD for one in of_kind(objects, kind) if one["metadata"]["name"] == "fedpipe.fedpipe.run-stores"]


@pytest.mark.parametrize("given", [{}, NARROW, WIDE], ids=["release", "namespaces", "cluster"])
def test_every_role_of_the_operator_is_bound_to_its_account_alone(given: Plain) -> None:
    objects = rendered(given | {"rbac.userRoles": False})
    account = of_kind(objects, "ServiceAccount")[0]["metadata"]
    roles = [
        (kind, one["metadata"]["name"], one["metadata"].get("namespace"))
        for kind in ("ClusterRole", "Role")
        for one in of_kind(objects, kind)
    ]
    bindings = of_kind(objects, "ClusterRoleBinding") + of_kind(objects, "RoleBinding")

    bound = [(one["roleRef"]["kind"], one["roleRef"]["name"], one["metadata"].get("namespace")) for one in bindings]

    assert sorted(bound, key=str) == sorted(roles, key=str)
    assert all(
        one["subjects"] == [{"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}] for one in bindings
    )


def test_the_user_roles_are_aggregated_to_those_of_kubernetes() -> None:
    labelled = {
        label.removeprefix("rbac.authorization.k8s.io/aggregate-to-"): granted(role["rules"])
        for role in of_kind(rendered(), "ClusterRole")
        for label in role["metadata"]["labels"]
        if label.startswith("rbac.authorization.k8s.io/")
    }

    assert labelled == {role: granted(its_rules) for role, its_rules in rules("users").items()}


def test_two_releases_share_no_name() -> None:
    both = [
        {
            (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
            for one in rendered({"crds.enabled": False}, namespace=namespace)
        }
        for namespace in ("one", "two")
    ]

    assert both[0] & both[1] == set()


def test_the_operators_pod_meets_the_restricted_pod_security_profile() -> None:
    spec = of_kind(rendered(), "Deployment")[0]["spec"]["template"]["spec"]

    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["volumes"] == [{"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}}]


@pytest.mark.parametrize("given", [{}, {"nameOverride": "other"}], ids=str)
def test_fedpipe_logs_finds_the_operators_pod_and_its_container(given: Plain) -> None:
    pod = of_kind(rendered(given), "Deployment")[0]["spec"]["template"]

    assert OPERATOR_LABELS.items() <= pod["metadata"]["labels"].items()
    assert is_operator(pod)
    assert [container["name"] for container in pod["spec"]["containers"]] == [OPERATOR]


def test_a_new_pod_stands_by_before_an_old_one_ends_and_the_selector_matches_both() -> None:
    deployment = of_kind(rendered(), "Deployment")[0]["spec"]
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}

    assert (deployment["replicas"], deployment["strategy"]) == (1, rolling)
    assert deployment["selector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()


def test_the_replicas_of_a_release_share_a_lease_of_its_name_and_each_has_its_own_identity() -> None:
    objects = rendered(WIDE | {"replicas": 2}, name="ours", namespace="platform")
    env = {
        one["name"]: one.get("value") or one["valueFrom"].get("fieldRef", {}).get("fieldPath")
        for one in container(objects)["env"]
        if one.get("value") or "valueFrom" in one
    }
    (role,) = (role for role in of_kind(objects, "Role") if role["metadata"]["name"] == "ours-fedpipe-lease")

    assert {name: env[f"FEDPIPE_{name}"] for name in ("POD_NAME", "POD_NAMESPACE", "LEASE_NAME")} == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "LEASE_NAME": "ours-fedpipe",
    }
    assert (role["metadata"]["namespace"], granted(role["rules"])) == ("platform", granted(rules("lease")))
    assert [rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule] == [["ours-fedpipe"]]


def test_the_operator_knows_the_memory_that_its_container_may_use() -> None:
    (memory,) = (one["valueFrom"] for one in container(rendered())["env"] if one["name"] == "FEDPIPE_MEMORY_BYTES")

    assert memory == {"resourceFieldRef": {"containerName": "operator", "resource": "limits.memory"}}


def test_replicas_prefer_different_nodes_and_a_drain_takes_one_at_a_time() -> None:
    one, two = rendered(), rendered({"replicas": 2})
    affinity = of_kind(two, "Deployment")[0]["spec"]["template"]["spec"]["affinity"]
    (term,) = affinity["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    (budget,) = of_kind(two, "PodDisruptionBudget")

    assert of_kind(one, "PodDisruptionBudget") == []
    assert budget["spec"]["maxUnavailable"] == 1
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert (
        budget["spec"]["selector"]["matchLabels"]
        == term["podAffinityTerm"]["labelSelector"]["matchLabels"]
        == of_kind(two, "Deployment")[0]["spec"]["selector"]["matchLabels"]
    )


def test_the_probes_ask_for_life_and_readiness_apart() -> None:
    probes = {name: container(rendered())[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}

    assert probes == {
        "livenessProbe": {"path": "/healthz", "port": "health"},
        "readinessProbe": {"path": "/readyz", "port": "health"},
    }


def test_the_administrator_decides_where_and_how_the_pod_runs() -> None:
    given = {
        "nodeSelector": {"kind": "control"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "ours"}],
        "podAnnotations": {"a": "b"},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "terminationGracePeriodSeconds": 60,
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.0.0.10"]},
        "podLabels": {"team": "platform"},
        "deploymentAnnotations": {"reloader.example/auto": "true"},
        "revisionHistoryLimit": 7,
        "livenessProbe": {"periodSeconds": 60},
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}},
    }
    objects = rendered(given)
    deployment = of_kind(objects, "Deployment")[0]
    template = deployment["spec"]["template"]

    scheduling = ("nodeSelector", "tolerations", "affinity", "priorityClassName", "imagePullSecrets", "topologySpreadConstraints")
    assert {name: template["spec"][name] for name in given if name in template["spec"]} == {
        name: given[name] for name in (*scheduling, "terminationGracePeriodSeconds", "dnsPolicy", "dnsConfig")
    }
    assert (deployment["metadata"]["annotations"], deployment["spec"]["revisionHistoryLimit"]) == (given["deploymentAnnotations"], 7)
    assert template["metadata"]["labels"]["team"] == "platform"
    assert "team" not in deployment["spec"]["selector"]["matchLabels"]
    assert (container(objects)["livenessProbe"]["periodSeconds"], container(objects)["livenessProbe"]["failureThreshold"]) == (60, 3)
    assert template["spec"]["volumes"][-1:] == given["extraVolumes"]
    assert container(objects)["volumeMounts"][-1:] == given["extraVolumeMounts"]
    assert template["metadata"]["annotations"] == given["podAnnotations"]
    assert container(objects)["env"][-1:] == given["extraEnv"]
    assert container(objects)["resources"]["requests"]["memory"] == "1Gi"


def test_an_existing_service_account_is_used() -> None:
    objects = rendered({"serviceAccount": {"create": False, "name": "theirs"}})

    assert of_kind(objects, "ServiceAccount") == []
    assert of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"
    assert of_kind(objects, "RoleBinding")[0]["subjects"][0]["name"] == "theirs"


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("maxConcurrentReconcile=1", "maxConcurrentReconcile"),
        ("namespaces[0]=ward,rbac.scope=cluster", "namespaces"),
        ("networkPolicy.apiServerCIDRs[0]=10.96.0.1", "apiServerCIDRs"),
        ("scratch=20 GB", "scratch"),
        ("exportJob.resources.limits.memory=8 GB", "/exportJob/resources/limits/memory"),
        ("caBundle=hospital-ca", "/caBundle"),
        ("metrics.serviceMonitor.enabled=yes", "/metrics/serviceMonitor/enabled"),
    ],
)
def test_a_wrong_value_is_reported_by_name(setting: str, named: str) -> None:
    done = helm("template", "fedpipe", CHART, "--set", setting)

    assert done.returncode != 0
    assert named in done.stderr


def test_a_long_release_name_is_truncated_to_a_valid_name() -> None:
    names = [
        one["metadata"]["name"] for one in rendered(name="a" * 53, namespace="b" * 63) if one["kind"] in ("Deployment", "ServiceAccount")
    ]

    assert max(map(len, names)) <= 63


def test_reports_are_served_only_where_that_is_asked_for() -> None:
    objects = rendered()

    assert [one["metadata"]["name"] for one in objects if "report" in one["metadata"]["name"] or "review" in one["metadata"]["name"]] == []
    assert "reports" not in {port["name"] for port in container(objects)["ports"]}
    assert "ingress" not in operator_policy(objects)


def test_served_reports_come_with_a_service_and_the_right_to_ask_about_callers() -> None:
    objects = rendered({"reports.enabled": True})
    (service,) = (one for one in of_kind(objects, "Service") if one["metadata"]["name"] == "fedpipe-reports")
    (role,) = (one for one in of_kind(objects, "ClusterRole") if one["metadata"]["name"].endswith(".reviews"))
    (binding,) = (one for one in of_kind(objects, "ClusterRoleBinding") if one["metadata"]["name"].endswith(".reviews"))

    assert service["spec"]["ports"] == [{"name": "http", "port": 8443, "targetPort": "reports"}]
    assert {"name": "reports", "containerPort": 8443} in container(objects)["ports"]
    assert granted(role["rules"]) == granted(rules("reviews"))
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "fedpipe", "namespace": "fedpipe"}]
    assert "ingress" not in operator_policy(objects), "nobody but a node may connect"


def test_served_reports_may_have_a_certificate_and_callers_in_the_cluster() -> None:
    ingress = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}
    given: Plain = {"reports.enabled": True, "reports.tlsSecretName": "reports-tls", "networkPolicy.reportsFrom": [ingress]}
    objects = rendered(given)
    (service,) = (one for one in of_kind(objects, "Service") if one["metadata"]["name"] == "fedpipe-reports")

    assert service["spec"]["ports"][0]["name"] == "https"
    assert {"name": "reports-tls", "secret": {"secretName": "reports-tls"}} in pod_spec(objects)["volumes"]
    assert {"name": "reports-tls", "mountPath": REPORTS_TLS, "readOnly": True} in container(objects)["volumeMounts"]
    assert operator_policy(objects)["ingress"] == [{"from": [ingress], "ports": [{"port": "reports"}]}]


def operator_policy(objects: list[Plain]) -> Plain:
    """The spec of the operator's NetworkPolicy."""
    (found,) = (one["spec"] for one in of_kind(objects, "NetworkPolicy") if one["metadata"]["name"] == "fedpipe")
    return found  # type: ignore[no-any-return]

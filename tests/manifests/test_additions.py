"""What a site adds to its trainer pods: an allow-list, of which nothing replaces what FedPipe sets."""

import json
from pathlib import Path
from typing import Any

import pytest
from crds import ROOT, is_accepted, openapi_schema
from smallest_documents import SITE_DOCUMENT
from stand_in_cluster import SETTINGS
from stand_in_runs import a_run, a_site

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.api.parse import parse_object
from fedpipe_operator.api.pod_template import RESERVED_PREFIXES, RESERVED_VARIABLES
from fedpipe_operator.backend import JobResources, TaskKind
from fedpipe_operator.errors import UserError
from fedpipe_operator.manifests import trainer_job
from fedpipe_operator.rounds import job_of
from fedpipe_operator.settings import Settings

ALLOWED = Settings(trainer_image="trainer:1", operator_image="operator:1", priority_classes=("batch",))
EVERYTHING = {
    "labels": {"cost": "7", "kueue.x-k8s.io/queue-name": "research", "app.kubernetes.io/part-of": "triage"},
    "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    "spec": {
        "nodeSelector": {"disk": "fast", "pool": "another"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "affinity": {
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone", "labelSelector": {}}]},
        },
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "priorityClassName": "batch",
    },
    "env": [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:True"},
    ],
    "caConfigMap": {"name": "hospital-ca", "key": "bundle.pem"},
}


def template_of(site: EdgeSite, settings: Settings = SETTINGS) -> dict[str, Any]:
    run = a_run([site])
    body = trainer_job(run, job_of(run, TaskKind.TRAIN, site=site.name, round_=1), site, JobResources(), settings)
    found: dict[str, Any] = body["spec"]["template"]
    return found


def document(**template: Any) -> dict[str, Any]:
    return SITE_DOCUMENT | {"spec": SITE_DOCUMENT["spec"] | {"podTemplate": template}}


def problems(**template: Any) -> list[str]:
    """What `fedpipe validate` and the site's condition say."""
    return parse_object(document(**template), EdgeSite)[1]


def test_everything_that_a_site_may_add_is_in_its_pods() -> None:
    site = a_site("ward", nodeSelector={"pool": "a10"}, tolerations=[{"key": "gpu", "operator": "Exists"}], podTemplate=EVERYTHING)
    template = template_of(site, ALLOWED)
    plain, pod = template_of(a_site("ward"))["spec"], template["spec"]
    (container,), (before,) = pod["containers"], plain["containers"]

    assert problems(**EVERYTHING) == []
    assert is_accepted(document(**EVERYTHING))
    assert EVERYTHING["labels"].items() <= template["metadata"]["labels"].items()  # type: ignore[attr-defined]
    assert template["metadata"]["annotations"] == EVERYTHING["annotations"]
    assert {name: value for name, value in pod.items() if plain.get(name) != value and name not in ("containers", "volumes")} == {
        "nodeSelector": {"disk": "fast", "pool": "a10"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}, {"key": "spot", "operator": "Exists"}],
        "affinity": EVERYTHING["spec"]["affinity"],  # type: ignore[index]
        "topologySpreadConstraints": EVERYTHING["spec"]["topologySpreadConstraints"],  # type: ignore[index]
        "priorityClassName": "batch",
    }
    bundle = "/etc/fedpipe/ca/ca.crt"
    trusting = [{"name": name, "value": bundle} for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")]
    volume = {"name": "ca", "configMap": {"name": "hospital-ca", "items": [{"key": "bundle.pem", "path": "ca.crt"}]}}
    mount = {"name": "ca", "mountPath": "/etc/fedpipe/ca", "readOnly": True}
    assert container == before | {
        "env": [*EVERYTHING["env"], *before["env"], *trusting],
        "volumeMounts": [*before["volumeMounts"], mount],
    }
    assert pod["volumes"] == [*plain["volumes"], volume]


def test_a_site_that_adds_nothing_changes_nothing() -> None:
    assert template_of(a_site("ward", podTemplate={})) == template_of(a_site("ward"))


STORE_KEYS = {"name": "store"}
GRABS: dict[str, dict[str, Any]] = {
    "a folder of the node": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]},
    "another site's task": {"volumes": [{"name": "task", "secret": {"secretName": "fp-1-toy-train-r1-other-a0"}}]},
    "another site's claim": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "other-notes"}}]},
    "a Secret as a variable": {
        "containers": [{"name": "trainer", "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": STORE_KEYS | {"key": "k"}}}]}]
    },
    "a Secret as variables": {"containers": [{"name": "trainer", "envFrom": [{"secretRef": STORE_KEYS}]}]},
    "a Secret in a projected volume": {"volumes": [{"name": "keys", "projected": {"sources": [{"secret": STORE_KEYS}]}}]},
    "a token": {"volumes": [{"name": "keys", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]},
    "a driver's volume": {"volumes": [{"name": "keys", "csi": {"driver": "secrets-store.csi.k8s.io"}}]},
    "a node past the scheduler": {"nodeName": "control-plane"},
    "another scheduler": {"schedulerName": "mine"},
    "a container of its own": {"initContainers": [{"name": "first", "image": "x"}]},
    "a container beside the trainer": {"containers": [{"name": "side", "image": "x"}]},
    "a debugger": {"ephemeralContainers": [{"name": "debug", "image": "x"}]},
    "the trainer's image": {"containers": [{"name": "trainer", "image": "registry/evil:1"}]},
    "the trainer's command": {"containers": [{"name": "trainer", "command": ["sh"]}]},
    "a privileged trainer": {"containers": [{"name": "trainer", "securityContext": {"privileged": True}}]},
    "root": {"securityContext": {"runAsUser": 0, "runAsNonRoot": False}},
    "the node's network": {"hostNetwork": True},
    "the node's processes": {"hostPID": True, "hostIPC": True},
    "a service account": {"serviceAccountName": "admin", "automountServiceAccountToken": True},
    "pull Secrets": {"imagePullSecrets": [{"name": "others"}]},
    "names of hosts": {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["minio.minio"]}]},
    "a name server": {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"]}},
    "devices": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "others"}]},
    "a priority": {"priority": 2000000000},
    "pods of other namespaces, kept from a node": {
        "affinity": {
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone", "namespaceSelector": {}}]}
        }
    },
}


@pytest.mark.parametrize("grab", GRABS.values(), ids=GRABS.keys())
def test_a_pod_template_lets_nothing_through_but_its_own_fields(grab: dict[str, Any]) -> None:
    said = problems(spec=grab)

    assert not is_accepted(document(spec=grab)), "the API server refuses it by the schema"
    assert len(said) == sum(1 for _ in grab)
    assert all(one.startswith("spec.podTemplate.spec.") and "unknown field: " in one for one in said)


@pytest.mark.parametrize("name", ["system-node-critical", "system-cluster-critical", "system-mine"])
def test_a_system_priority_class_is_refused_whatever_the_settings_name(name: str) -> None:
    (problem,) = problems(spec={"priorityClassName": name})

    assert problem == (f"spec.podTemplate.spec.priorityClassName: {name} is for the cluster's own pods: name a priority class of your own")
    rules = openapi_schema("EdgeSite")["properties"]["spec"]["properties"]["podTemplate"]["properties"]["spec"]["properties"]
    assert rules["priorityClassName"]["x-kubernetes-validations"][0]["rule"] == "!self.startsWith('system-')"


def test_a_priority_class_that_the_settings_do_not_name_is_refused() -> None:
    site = a_site("ward", podTemplate={"spec": {"priorityClassName": "high"}})

    with pytest.raises(UserError, match="is high, and the operator's administrator allows batch: remove it") as error:
        template_of(site, ALLOWED)
    assert error.value.reason == "PriorityClassNotAllowed"
    with pytest.raises(UserError, match="is high, and the operator's administrator allows none: remove it"):
        template_of(site)


@pytest.mark.parametrize(
    "key",
    [
        *("fedpipe.io/run", "fedpipe.io/site", "x.fedpipe.io/y", "app.kubernetes.io/component", "app.kubernetes.io/name"),
        *("batch.kubernetes.io/job-name", "batch.kubernetes.io/controller-uid", "job-name", "controller-uid"),
        *("container.apparmor.security.beta.kubernetes.io/trainer", "seccomp.security.alpha.kubernetes.io/pod"),
        *("kubernetes.io/config.mirror", "pod-security.kubernetes.io/enforce", "k8s.v1.cni.k8s.io/networks"),
        "k8s.v1.cni.cncf.io/networks",
    ],
)
@pytest.mark.parametrize("where", ["labels", "annotations"])
def test_labels_and_annotations_of_fedpipe_and_of_kubernetes_are_refused(where: str, key: str) -> None:
    assert problems(**{where: {key: "x"}}) == [
        f"spec.podTemplate.{where}: {key} is reserved for FedPipe or for Kubernetes: use a key with a prefix of your own"
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONWARNINGS", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PATH", "GCONV_PATH"),
        *("OPENSSL_CONF", "SSL_CERT_FILE", "SSLKEYLOGFILE", "OMP_TOOL_LIBRARIES", "NCCL_NET_PLUGIN", "CUDA_INJECTION64_PATH", "CC"),
        *("NVIDIA_VISIBLE_DEVICES", "HF_MODULES_CACHE", "USE_HUB_KERNELS", "TORCHINDUCTOR_CACHE_DIR", "FEDPIPE_MEMORY_LIMIT_BYTES"),
    ],
)
def test_a_variable_that_decides_which_code_is_loaded_is_refused(name: str) -> None:
    assert problems(env=[{"name": name, "value": "/data/evil"}]) == [
        f"spec.podTemplate.env[0].name: {name} is reserved: FedPipe sets it, or it decides which code a trainer loads; remove it"
    ]


def test_a_variable_has_a_value_and_no_reference() -> None:
    grab = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "store", "key": "k"}}}

    assert not is_accepted(document(env=[grab]))
    assert problems(env=[grab])[0].startswith("spec.podTemplate.env[0].valueFrom: unknown field: ")


def test_every_variable_that_fedpipe_or_its_image_sets_is_reserved() -> None:
    golden = json.loads((Path(__file__).with_name("golden") / "train-on-gpus.json").read_text())
    in_pods = {one["name"] for one in golden["spec"]["template"]["spec"]["containers"][0]["env"]}
    image = (ROOT / "Dockerfile.trainer").read_text().partition("ENV ")[2].partition("\n\n")[0]
    in_image = {line.strip().partition("=")[0] for line in image.splitlines()}

    assert in_pods | in_image >= {"HOME", "FEDPIPE_CACHE", "PYTHONPATH", "HF_HOME"}
    assert {name for name in in_pods | in_image if not (name in RESERVED_VARIABLES or name.startswith(RESERVED_PREFIXES))} == set()


def test_the_crd_reserves_the_same_variables() -> None:
    template = openapi_schema("EdgeSite")["properties"]["spec"]["properties"]["podTemplate"]["properties"]
    (rule,) = template["env"]["items"]["properties"]["name"]["x-kubernetes-validations"]

    assert rule["rule"] == f"!self.matches('^({'|'.join(RESERVED_PREFIXES)})|^({'|'.join(RESERVED_VARIABLES)})$')"

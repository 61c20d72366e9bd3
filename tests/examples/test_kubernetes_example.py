"""The example for a cluster is the quickstart start with the additional objects that a cluster needs."""

import re
from typing import Any

import yaml
from crds import ROOT

from fedpipe_operator.cli.files import Objects, read
from fedpipe_operator.cluster.credentials import ACCESS_KEY, SECRET_KEY

HERE = ROOT / "examples" / "kubernetes"
FILES = sorted((HERE / "cluster").iterdir())

Plain = dict[str, Any]


def objects(name: str) -> Objects:
    return read([ROOT / "examples" / name])[0]


def cluster_objects(kind: str) -> dict[str, Plain]:
    """The built-in Kubernetes objects of this kind, by name."""
    manifests = [manifest for file in FILES for manifest in yaml.safe_load_all(file.read_text())]
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def claims() -> set[str]:
    """The claims that the sites and the run mount."""
    example = objects("kubernetes")
    model = example.runs[0].spec.model.claim
    return {model} | {site.spec.data.volume.persistent_volume_claim.claim_name for site in example.sites}


def test_the_run_has_the_spec_of_the_quick_start() -> None:
    kubernetes, quickstart = (objects(name).runs[0] for name in ("kubernetes", "quickstart"))

    assert kubernetes.spec.model_copy(update={"store": quickstart.spec.store}) == quickstart.spec
    assert kubernetes.spec.store.bucket == quickstart.spec.store.bucket


def test_the_sites_are_those_of_the_quick_start_each_on_its_own_pool() -> None:
    kubernetes, quickstart = (objects(name).sites for name in ("kubernetes", "quickstart"))

    assert [site.model_copy(update={"spec": site.spec.model_copy(update={"node_selector": {}})}) for site in kubernetes] == quickstart
    assert [site.spec.node_selector for site in kubernetes] == [{"fedpipe.io/pool": site.name} for site in kubernetes]


def test_the_secret_of_the_store_exists_with_the_keys_that_are_read() -> None:
    reference = objects("kubernetes").runs[0].spec.store.credentials_secret_ref
    assert reference is not None
    secrets = cluster_objects("Secret")

    assert secrets.keys() == {reference.name}
    assert secrets[reference.name]["stringData"].keys() == {ACCESS_KEY, SECRET_KEY}
    assert all(value.startswith("example-") for value in secrets[reference.name]["stringData"].values())


def test_every_claim_is_created_and_filled_from_the_folder_of_its_name() -> None:
    spec = cluster_objects("Pod")["fill"]["spec"]
    mounted = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"]}
    filled = {mounted[mount["name"]]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}

    assert cluster_objects("PersistentVolumeClaim").keys() == claims()
    assert filled == {claim: f"/volumes/{claim}" for claim in claims()}


def test_all_pools_can_mount_the_model() -> None:
    assert cluster_objects("PersistentVolumeClaim")["models"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_files_that_the_readme_names_exist() -> None:
    named = re.findall(r"[\w./-]+(?:\.yaml|\.py|/)(?=[\s`])", (HERE / "README.md").read_text())

    assert {"cluster/store.yaml", "run.yaml", "examples/kubernetes/cluster/", "examples/quickstart/prepare.py"} <= set(named)
    assert [name for name in named if "volumes" not in name and "export" not in name and not _exists(name)] == []


def _exists(name: str) -> bool:
    return (HERE / name).exists() or (ROOT / name).exists()

"""The example for a cluster is the quick start, with what a cluster needs beside it."""

import re
from typing import Any

import yaml
from crds import ROOT

from fedpipe_operator.cli.files import Objects, read
from fedpipe_operator.cluster.credentials import ACCESS_KEY, SECRET_KEY
from fedpipe_operator.manifests.jobs import CLAIM_SCHEME

HERE = ROOT / "examples" / "kubernetes"
FILES = sorted((HERE / "cluster").iterdir())

Plain = dict[str, Any]


def objects(name: str) -> Objects:
    return read([ROOT / "examples" / name])[0]


def beside(kind: str) -> dict[str, Plain]:
    """Objects of Kubernetes' own, by name."""
    found = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]
    return {one["metadata"]["name"]: one for one in found if one["kind"] == kind}


def claims() -> set[str]:
    """What sites and run mount."""
    found = objects("kubernetes")
    model = found.runs[0].spec.model.source.removeprefix(CLAIM_SCHEME).partition("/")[0]
    return {model} | {site.spec.data.volume.persistent_volume_claim.claim_name for site in found.sites}


def test_the_run_asks_for_what_the_quick_start_asks_for() -> None:
    mine, quick = (objects(name).runs[0] for name in ("kubernetes", "quickstart"))

    assert mine.spec.model_copy(update={"store": quick.spec.store}) == quick.spec
    assert mine.spec.store.bucket == quick.spec.store.bucket


def test_the_sites_are_those_of_the_quick_start_each_on_a_pool_of_its_own() -> None:
    mine, quick = (objects(name).sites for name in ("kubernetes", "quickstart"))

    assert [site.model_copy(update={"spec": site.spec.model_copy(update={"node_selector": {}})}) for site in mine] == quick
    assert [site.spec.node_selector for site in mine] == [{"fedpipe.io/pool": site.name} for site in mine]


def test_the_store_s_secret_is_there_with_the_keys_that_are_read() -> None:
    reference = objects("kubernetes").runs[0].spec.store.credentials_secret_ref
    assert reference is not None
    secrets = beside("Secret")

    assert secrets.keys() == {reference.name}
    assert secrets[reference.name]["stringData"].keys() == {ACCESS_KEY, SECRET_KEY}
    assert all(value.startswith("example-") for value in secrets[reference.name]["stringData"].values())


def test_every_claim_is_made_and_filled_from_the_folder_of_its_name() -> None:
    spec = beside("Pod")["fill"]["spec"]
    mounted = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"]}
    filled = {mounted[mount["name"]]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}

    assert beside("PersistentVolumeClaim").keys() == claims()
    assert filled == {claim: f"/volumes/{claim}" for claim in claims()}


def test_all_pools_can_mount_the_model() -> None:
    assert beside("PersistentVolumeClaim")["models"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_readme_names_what_is_there() -> None:
    named = re.findall(r"[\w./-]+(?:\.yaml|\.py|/)(?=[\s`])", (HERE / "README.md").read_text())

    assert {"cluster/store.yaml", "run.yaml", "examples/kubernetes/cluster/", "examples/quickstart/prepare.py"} <= set(named)
    assert [name for name in named if "volumes" not in name and "export" not in name and not _exists(name)] == []


def _exists(name: str) -> bool:
    return (HERE / name).exists() or (ROOT / name).exists()

"""The examples that `fedpipe run` has on one machine, as objects of a cluster: real models, from `kubectl apply` to an exported adapter."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from cluster_user import Kubectl, Plain
from crds import ROOT
from fleet_namespace import SECRET, FleetNamespace, store_endpoint
from installed_operator import Operator

from fedpipe_operator import names
from fedpipe_operator.api.documents import read_yaml

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

METRICS: Final = {"inference": "accuracy", "chat": "perplexity", "questions": "tokenF1"}
"""The primary metric of each example."""
STEPS: Final = 4
LARGE: Final = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
"""The shape of TinyLlama-1.1B (arXiv 2401.02385)."""


@contextmanager
def prepared(name: str, folder: Path, operator: Operator) -> Iterator[FleetNamespace]:
    """A namespace with the claims of the example of this name, which its `prepare.py` filled."""
    example = shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("volumes")) / name
    subprocess.run([sys.executable, example / "prepare.py"], check=True)
    # The model is a link to the cache, where pods do not come.
    shutil.copytree(example / "volumes", folder / "volumes", copy_function=linked)
    for path in (folder.parent, folder, *(folder / "volumes").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "volumes").chmod(0o755)
    with FleetNamespace(Kubectl(f"e2e-example-{name}"), operator, folder).opened() as namespace:
        yield namespace


def linked(source: str, target: str) -> None:
    """Copy a file without its bytes."""
    Path(target).hardlink_to(Path(source).resolve())


def objects_of(name: str) -> list[Plain]:
    """The example's objects, with what a user of this cluster edits: the store, the processors of its nodes, and fewer steps."""
    files = [ROOT / "examples" / name / file for file in ("sites.yaml", "run.yaml")]
    objects: list[Plain] = [document.value for file in files for document in read_yaml(file.read_text(), str(file))[0]]
    *sites, run = objects
    for site in sites:
        site["spec"]["capacity"]["cpu"] = 1
    spec = run["spec"]
    spec["store"] |= {"prefix": "runs", "endpoint": store_endpoint(), "credentialsSecretRef": {"name": SECRET}}
    spec["rounds"] = {"count": 1, "deadline": "15m"}
    spec["planning"] |= {"bits": [16]}
    spec["training"] = spec.get("training", {}) | {"maxSteps": STEPS}
    spec["evaluation"] |= {"maxSamples": 8} | ({"generations": 4} if "generations" in spec["evaluation"] else {})
    return objects


@pytest.mark.usefixtures("disposable_cluster")
@pytest.mark.parametrize("name", METRICS)
def test_an_example_completes_on_a_cluster_and_exports_its_adapter(
    name: str, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with prepared(name, tmp_path_factory.mktemp(name), operator) as namespace:
        namespace.kubectl.apply(*objects_of(name))
        run = namespace.wait_until_complete(name, seconds=1500)
        exported = namespace.store_of(run).list("export")

    assert run["status"]["history"][0]["updates"] == "3/3"
    assert run["status"]["metric"]["name"] == METRICS[name]
    assert f"{names.EXPORT_ADAPTER}/adapter_model.safetensors" in exported
    assert any(key.startswith(names.EXPORT_MERGED) for key in exported)


@pytest.mark.usefixtures("disposable_cluster")
def test_a_base_of_a_billion_parameters_goes_through_a_cluster(operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> None:
    with prepared("chat", tmp_path_factory.mktemp("large"), operator) as namespace:
        size = make_large_base(namespace.fleet / "volumes/models")
        namespace.kubectl.apply(*objects_with_the_large_base())
        run = namespace.wait_until_complete("chat", seconds=3600)
        store = namespace.store_of(run)
        merged = sum(store.size(key) or 0 for key in store.list(names.EXPORT_MERGED) if key.endswith(".safetensors"))
        adapter = json.loads(store.read(f"{names.EXPORT_ADAPTER}/adapter_config.json") or b"")

    assert run["status"]["history"][0]["updates"] == "2/2"
    assert merged == size
    assert {name.rpartition(".")[2] for name in adapter["target_modules"]} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def make_large_base(models: Path) -> int:
    """A random base with the vocabulary, tokenizer and chat template of the example's model beside it; the bytes of its weights."""
    from random_bases import write_random_base  # noqa: PLC0415 -- every worker collects this file, and these imports take seconds
    from transformers import LlamaConfig  # noqa: PLC0415 -- likewise

    source, folder = models / "smollm2", models / "large"
    config = json.loads((source / "config.json").read_text())
    tokens = {name: config[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    write_random_base(folder, LlamaConfig(**tokens, **LARGE, dtype="bfloat16", architectures=["LlamaForCausalLM"]))
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, folder)
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    return (folder / "model.safetensors").stat().st_size


def objects_with_the_large_base() -> list[Plain]:
    """The chat example's sites with a csv and a parquet file, with memory for the base in 16 bits; few and short steps."""
    *sites, run = objects_of("chat")
    chosen = [site for site in sites if site["metadata"]["name"] != "phone"]
    for site in chosen:
        site["spec"]["capacity"]["memory"] = "6Gi"
    spec = run["spec"]
    spec["model"] = {"source": "pvc://models/large"}
    spec["task"]["maxLength"] = 64
    spec["rounds"]["deadline"] = "45m"
    spec["planning"] |= {"ranks": [0, 8], "batchSizes": [2]}
    spec["training"] |= {"maxSteps": 2}
    spec["evaluation"] = {"maxSamples": 4, "generations": 2, "maxNewTokens": 4, "samples": 0}
    return [*chosen, run]

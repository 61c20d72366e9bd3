"""The example of the README on three pools, with a small real model: from `kubectl apply` to an adapter that loads and is better."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster_user import FFT, Kubectl, Plain
from crds import ROOT
from health import is_met, kstatus
from installed_operator import Operator
from peft import PeftModel
from readmes import blocks, follow
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from wards import Ward, store_credentials

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundEvaluation, RoundPlan
from fedpipe_operator.store import S3Store
from fedpipe_trainer.data import read_rows

pytestmark = pytest.mark.e2e

MODEL = "minilm"
EXAMPLE = ROOT / "examples" / "kubernetes"
SHORTER = {
    "pvc://models/mpnet": f"pvc://models/{MODEL}",
    "count: 4, deadline: 5m": "count: 2, deadline: 15m",
    "[4, 16]": "[16]",
    "maxSamples: 100": "maxSamples: 50",
}
"""Two rounds instead of four, and one bit width to measure, to be done in some minutes."""
POOLS = {"campus": "large", "office": "small", "cabin": "large"}


@pytest.fixture(scope="module")
def quickstart(ours: None, operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """A namespace of its own with the example's Secret and claims, filled by the commands of its README."""
    del ours
    folder = tmp_path_factory.mktemp("quickstart")
    for claim in ("models", *(f"{site}-news" for site in POOLS)):
        (folder / "volumes" / claim).mkdir(parents=True)
        (folder / "volumes" / claim).chmod(0o777)
    for above in (folder.parent, folder):
        above.chmod(0o755)
    ward = Ward(Kubectl("e2e-quickstart"), operator, folder)
    ward.open_empty()
    follow_the_readme(edited_examples(folder / "examples"), ward.kubectl)
    yield ward
    ward.close()


def edited_examples(copy: Path) -> Path:
    """The examples, and what its user has to write into them: the key pair, an image that can be pulled, a smaller model, the nodes."""
    keys = store_credentials()
    shutil.copytree(EXAMPLE.parent, copy, ignore=shutil.ignore_patterns("volumes"))
    edit(copy / "kubernetes/cluster/store.yaml", {"example-access-key": keys.access_key, "example-secret-key": keys.secret_key})
    edit(copy / "kubernetes/cluster/fill.yaml", {"busybox:1.37": os.environ["FEDPIPE_TRAINER_IMAGE"]})
    edit(copy / "kubernetes/README.md", {"quickstart/prepare.py": f"quickstart/prepare.py --model {MODEL}"})
    edit(
        copy / "kubernetes/sites.yaml",
        {f"nodeSelector: {{fedpipe.io/pool: {site}}}": f"nodeSelector: {{fedpipe.io/pool: {POOLS[site]}}}" for site in POOLS},
    )
    edit(copy / "kubernetes/run.yaml", SHORTER)
    return copy


def edit(file: Path, words: Mapping[str, str]) -> None:
    """Replace these words, each of which must be there."""
    text = file.read_text()
    assert [word for word in words if word not in text] == []
    for word, other in words.items():
        text = text.replace(word, other)
    file.write_text(text)


def follow_the_readme(examples: Path, kubectl: Kubectl) -> None:
    """Run the commands of the example's README as they stand there, in this namespace."""
    (commands,) = blocks((examples / "kubernetes/README.md").read_text())
    kubeconfig = examples / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(kubectl("config", "view", "--raw", "--flatten"))
    kubectl("config", "set-context", "--current", f"--kubeconfig={kubeconfig}")
    follow(commands, folder=examples.parent, first_in_path=Path(sys.executable).parent, env={"KUBECONFIG": str(kubeconfig)})


@pytest.fixture(scope="module")
def finished(quickstart: Ward) -> Plain:
    """The run, once it is complete."""
    quickstart.kubectl("apply", "-f", str(quickstart.fleet / "examples/kubernetes"))
    return quickstart.wait_until_complete("quickstart", seconds=900)


@pytest.fixture(scope="module")
def store(quickstart: Ward, finished: Plain) -> S3Store:
    return quickstart.store_of(finished)


@pytest.fixture(scope="module")
def exported(store: S3Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the run left in S3, as a user would fetch it."""
    folder = tmp_path_factory.mktemp("exported")
    for key in store.list("export"):
        data = store.read(key)
        assert data is not None
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return folder / "export"


def test_kubectl_get_shows_how_the_run_stands(quickstart: Ward, finished: Plain) -> None:
    header, row = quickstart.kubectl("get", FFT, "quickstart").splitlines()

    assert header.split() == ["NAME", "READY", "REASON", "ROUND", "UPDATES", "METRIC", "AGE"]
    assert row.split()[:5] == ["quickstart", "True", "RoundsCompleted", "2", "3/3"]
    assert float(row.split()[5]) == finished["status"]["metric"]["value"]


def test_kubectl_wait_returns_for_the_condition_complete(quickstart: Ward, finished: Plain) -> None:
    said = quickstart.kubectl("wait", "--for=condition=Complete", "fft/quickstart", "--timeout=10s")

    assert "condition met" in said
    assert (is_met(finished, "Complete"), kstatus(finished)) == (True, "Current")


def test_kubectl_describe_shows_each_sites_plan_with_its_reasons_the_rounds_and_the_events(quickstart: Ward, finished: Plain) -> None:
    assert finished
    said = quickstart.kubectl("describe", FFT, "quickstart")

    assert {plan["site"] for plan in finished["status"]["plans"]} == set(POOLS)
    assert all(plan["why"] for plan in finished["status"]["plans"])
    for word in ("the largest value in planning.bits", "Profiling", "RoundCompleted", "round 2: 3/3 updates", "RoundsCompleted"):
        assert word in said


def test_every_site_trained_on_its_own_pool(quickstart: Ward, finished: Plain) -> None:
    label = f"fedpipe.io/run-uid={finished['metadata']['uid']},fedpipe.io/task=train"
    ran = {pod["metadata"]["labels"]["fedpipe.io/site"]: pod["spec"]["nodeName"] for pod in quickstart.kubectl.list("pods", label)}

    assert set(ran) == set(POOLS)
    assert ran["campus"] == ran["cabin"] != ran["office"]


def test_what_was_measured_is_in_the_sites_status(quickstart: Ward, finished: Plain) -> None:
    capacity = quickstart.of_site("campus")["status"]["capacity"]

    assert finished["metadata"]["name"] == capacity["measured"]["run"]
    assert capacity["claimed"]["memory"] == capacity["measured"]["memory"] == 3 * 2**30
    assert capacity["discovered"]["nodes"] == 1


def test_the_federated_model_is_better_than_the_base(store: S3Store, finished: Plain) -> None:
    base = RoundEvaluation.model_validate_json(store.read(names.round_evaluation(0)) or b"")

    assert finished["status"]["metric"]["name"] == "accuracy"
    assert finished["status"]["metric"]["value"] > base.metrics["accuracy"] + 0.05


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
def test_the_adapter_from_s3_loads_into_the_base_and_is_as_good_as_it_was_measured(
    store: S3Store, exported: Path, quickstart: Ward, finished: Plain
) -> None:
    plan = RoundPlan.model_validate_json(store.read(names.round_plan(1)) or b"")
    base = AutoModelForSequenceClassification.from_pretrained(quickstart.fleet / "volumes/models" / MODEL, num_labels=len(plan.labels))
    files = list(quickstart.fleet.glob("volumes/*-news/validation.*"))
    rows = [row for file in files for row in read_rows(file, ("text", "label")).rows]

    adapted = PeftModel.from_pretrained(base, exported / "adapter")
    merged = AutoModelForSequenceClassification.from_pretrained(exported / "merged")

    scores = scores_of(adapted, rows, quickstart)
    right = [plan.labels[int(best)] == row["label"] for best, row in zip(scores.argmax(dim=1), rows, strict=True)]
    assert len(files) == len(POOLS)
    assert abs(sum(right) / len(rows) - finished["status"]["metric"]["value"]) < 0.08, "the run measured 150 of these documents"
    assert torch.allclose(scores, scores_of(merged, rows, quickstart), atol=1e-3)


def scores_of(model: Any, rows: list[Mapping[str, str]], quickstart: Ward) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(quickstart.fleet / "volumes/models" / MODEL)
    texts = [row["text"] for row in rows]
    batch = tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**batch).logits
    return logits


def test_nothing_of_the_run_is_left_when_it_is_deleted_but_its_results(quickstart: Ward, store: S3Store, finished: Plain) -> None:
    quickstart.kubectl("delete", FFT, "quickstart")

    quickstart.wait("all of it is gone", lambda: not quickstart.left_of(finished))
    assert any(key.startswith(names.EXPORT_ADAPTER) for key in store.list("export"))

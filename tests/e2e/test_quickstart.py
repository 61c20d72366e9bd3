"""The README's example on three pools with a small real model: from `kubectl apply` to an adapter that loads and improves the base.

A Prometheus scrapes the operator meanwhile. With FEDPIPE_RECORD_SECONDS=FILE, the seconds of each phase are written into that file
(`tools/first_dashboard.py`).
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
from cluster_user import FFT, Kubectl, Plain
from crds import ROOT
from fleet_namespace import FleetNamespace, store_credentials
from health import is_met, kstatus
from installed_operator import Operator
from observability.answers import Source
from observability.dashboards import DASHBOARDS
from observability.drawing import draw
from observability.pictures import answers_of
from prometheus import prometheus_of_the_operator
from readmes import blocks, follow

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundEvaluation, RoundPlan
from fedpipe_operator.store import S3Store

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.e2e

MODEL = "minilm"
CHUNK = 16 * 2**20
NAMESPACE = "e2e-quickstart"
"""In place of the release's namespace, which other tests use."""
EXAMPLE = ROOT / "examples" / "kubernetes"
SHORTER = {
    "pvc://models/mpnet": f"pvc://models/{MODEL}",
    "count: 4, deadline: 5m": "count: 2, deadline: 15m",
    "[4, 16]": "[16]",
    "learningRate: 1e-3": "learningRate: 1e-3, maxSteps: 12",
    "maxSamples: 100": "maxSamples: 50",
}
"""Two short rounds instead of four and one bit width to measure, so that the run takes some minutes."""
SECONDS = 900.0
"""The time range of the panels."""
POOLS = {"campus": "large", "office": "small", "cabin": "large"}


@pytest.fixture(scope="module")
def quickstart(disposable_cluster: None, operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetNamespace]:
    """A namespace with the example's Secret and claims, filled by the commands of its README."""
    del disposable_cluster
    folder = tmp_path_factory.mktemp("quickstart")
    for claim in ("models", *(f"{site}-news" for site in POOLS)):
        (folder / "volumes" / claim).mkdir(parents=True)
        (folder / "volumes" / claim).chmod(0o777)
    for above in (folder.parent, folder):
        above.chmod(0o755)
    namespace = FleetNamespace(Kubectl(NAMESPACE), operator, folder)
    with phase("model, documents and claims"):
        namespace.open_empty()
        follow_the_readme(edited_examples(folder / "examples"))
    yield namespace
    namespace.close()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Write the seconds of this context into the file that the environment names."""
    start = time.monotonic()
    yield
    if file := os.environ.get("FEDPIPE_RECORD_SECONDS"):
        with Path(file).open("a") as lines:
            lines.write(json.dumps([name, round(time.monotonic() - start, 1)]) + "\n")


def edited_examples(copy: Path) -> Path:
    """A copy of the examples with what its user fills in: the key pair, an image that can be pulled, a smaller model, the nodes."""
    keys = store_credentials()
    shutil.copytree(EXAMPLE.parent, copy, ignore=shutil.ignore_patterns("volumes"))
    edit(copy / "kubernetes/cluster/store.yaml", {"example-access-key": keys.access_key, "example-secret-key": keys.secret_key})
    edit(copy / "kubernetes/cluster/fill.yaml", {"busybox:1.37": os.environ["FEDPIPE_TRAINER_IMAGE"]})
    edit(
        copy / "kubernetes/README.md",
        {"quickstart/prepare.py": f"quickstart/prepare.py --model {MODEL}", "-n fedpipe": f"-n {NAMESPACE}"},
    )
    edit(
        copy / "kubernetes/sites.yaml",
        {f"nodeSelector: {{fedpipe.io/pool: {site}}}": f"nodeSelector: {{fedpipe.io/pool: {POOLS[site]}}}" for site in POOLS},
    )
    edit(copy / "kubernetes/run.yaml", SHORTER)
    return copy


def edit(file: Path, replacements: Mapping[str, str]) -> None:
    """Replace these strings, each of which must occur."""
    text = file.read_text()
    assert [old for old in replacements if old not in text] == []
    for old, new in replacements.items():
        text = text.replace(old, new)
    file.write_text(text)


def follow_the_readme(examples: Path) -> None:
    """Run the commands of the example's README."""
    (commands,) = blocks((examples / "kubernetes/README.md").read_text())
    follow(commands, folder=examples.parent, first_in_path=Path(sys.executable).parent)


@pytest.fixture(scope="module")
def watched(quickstart: FleetNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """The dashboards' choices of this run, in a Prometheus that scrapes the operator."""
    choices = {"release": ".*", "namespace": NAMESPACE, "run": "quickstart", "site": ".*", "job": ".*", "__rate_interval": "30s"}
    with prometheus_of_the_operator(tmp_path_factory.mktemp("prometheus"), quickstart.operator.kubectl) as url:
        yield Source(url, choices, SECONDS)


@pytest.fixture(scope="module")
def finished(quickstart: FleetNamespace, watched: Source) -> Plain:
    """The run, once it is complete."""
    quickstart.kubectl("apply", "-f", str(quickstart.fleet / "examples/kubernetes"))
    with phase("to the first dashboard that shows the run"):
        quickstart.wait("the dashboard Fleet shows the run", lambda: f">{NAMESPACE}/quickstart<" in picture_of("fedpipe-fleet", watched))
    with phase("from there to the run's end"):
        return quickstart.wait_until_complete("quickstart")


def picture_of(uid: str, source: Source) -> str:
    """The dashboard as it is now."""
    (one,) = (dashboard for dashboard in DASHBOARDS if dashboard.uid == uid)
    return draw(one, answers_of(uid, source))


@pytest.fixture(scope="module")
def store(quickstart: FleetNamespace, finished: Plain) -> S3Store:
    return quickstart.store_of(finished)


@pytest.fixture(scope="module")
def exported(store: S3Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported files, downloaded from S3 as a user would."""
    folder = tmp_path_factory.mktemp("exported")
    for key in store.list("export"):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        with store.open_reader(key) as reader:
            (folder / key).write_bytes(b"".join(reader.read(at, CHUNK) for at in range(0, reader.size, CHUNK)))
    return folder / "export"


def test_kubectl_get_shows_the_runs_state(quickstart: FleetNamespace, finished: Plain) -> None:
    header, row = quickstart.kubectl("get", FFT, "quickstart").splitlines()

    assert header.split() == ["NAME", "READY", "REASON", "ROUND", "PROGRESS", "UPDATES", "METRIC", "AGE"]
    assert row.split()[:6] == ["quickstart", "True", "RoundsCompleted", "2", "100", "3/3"]
    assert float(row.split()[6]) == finished["status"]["metric"]["value"]


def test_kubectl_wait_returns_for_the_condition_complete(quickstart: FleetNamespace, finished: Plain) -> None:
    printed = quickstart.kubectl("wait", "--for=condition=Complete", "fft/quickstart", "--timeout=10s")

    assert "condition met" in printed
    assert (is_met(finished, "Complete"), kstatus(finished)) == (True, "Current")


def test_kubectl_describe_shows_each_sites_plan_with_its_reasons_the_rounds_and_the_events(
    quickstart: FleetNamespace, finished: Plain
) -> None:
    assert finished
    described = quickstart.kubectl("describe", FFT, "quickstart")

    assert {plan["site"] for plan in finished["status"]["plans"]} == set(POOLS)
    assert all(plan["why"] for plan in finished["status"]["plans"])
    for word in ("the most that planning.bits allows", "Profiling", "RoundCompleted", "round 2: 3/3 updates", "RoundsCompleted"):
        assert word in described


@pytest.mark.parametrize("uid", ["fedpipe-fleet", "fedpipe-run"])
def test_every_panel_of_both_dashboards_has_data_of_the_run_unless_there_can_be_none(watched: Source, finished: Plain, uid: str) -> None:
    assert finished
    panels = [panel for one in DASHBOARDS if one.uid == uid for panel in one.panels()]
    answers = answers_of(uid, watched)

    assert [panel.title for panel in panels if not all(answers[panel.title]) and not panel.may_be_empty] == []


def test_the_run_is_seen_in_the_pictures_of_both_dashboards(watched: Source, finished: Plain) -> None:
    fleet, run = picture_of("fedpipe-fleet", watched), picture_of("fedpipe-run", watched)

    assert f">{NAMESPACE}/quickstart<" in fleet
    assert f">accuracy: {finished['status']['metric']['value']:.3g}<" in run
    assert all(f">{site}" in run for site in POOLS)


def test_every_site_trained_on_its_own_pool(quickstart: FleetNamespace, finished: Plain) -> None:
    label = f"fedpipe.io/run-uid={finished['metadata']['uid']},fedpipe.io/task=train"
    ran = {pod["metadata"]["labels"]["fedpipe.io/site"]: pod["spec"]["nodeName"] for pod in quickstart.kubectl.list("pods", label)}

    assert set(ran) == set(POOLS)
    assert ran["campus"] == ran["cabin"] != ran["office"]


def test_the_measured_capacity_is_in_the_sites_status(quickstart: FleetNamespace, finished: Plain) -> None:
    capacity = quickstart.get_site("campus")["status"]["capacity"]

    assert finished["metadata"]["name"] == capacity["measured"]["run"]
    assert capacity["claimed"]["memory"] == capacity["measured"]["memory"] == 3 * 2**30
    assert capacity["discovered"]["nodes"] == 1


def test_the_federated_model_is_better_than_the_base(store: S3Store, finished: Plain) -> None:
    base = RoundEvaluation.model_validate_json(store.read(names.round_evaluation(0)) or b"")

    assert finished["status"]["metric"]["name"] == "accuracy"
    assert finished["status"]["metric"]["value"] > base.metrics["accuracy"] + 0.05


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
def test_the_adapter_from_s3_loads_into_the_base_and_is_as_good_as_it_was_measured(
    store: S3Store, exported: Path, quickstart: FleetNamespace, finished: Plain
) -> None:
    import torch  # noqa: PLC0415 -- every worker collects this file, and this import takes seconds
    from peft import PeftModel  # noqa: PLC0415 -- likewise
    from transformers import AutoModelForSequenceClassification  # noqa: PLC0415 -- likewise

    from fedpipe_trainer.data import read_rows  # noqa: PLC0415 -- likewise

    plan = RoundPlan.model_validate_json(store.read(names.round_plan(1)) or b"")
    base = AutoModelForSequenceClassification.from_pretrained(quickstart.fleet / "volumes/models" / MODEL, num_labels=len(plan.labels))
    files = list(quickstart.fleet.glob("volumes/*-news/validation.*"))
    of_sites = [read_rows(file, ("text", "label")).rows for file in files]
    rows = [row for of_site in of_sites for row in of_site]

    adapted = PeftModel.from_pretrained(base, exported / "adapter")
    merged = AutoModelForSequenceClassification.from_pretrained(exported / "merged")

    scores = scores_of(adapted, rows, quickstart)
    right = iter([plan.labels[int(best)] == row["label"] for best, row in zip(scores.argmax(dim=1), rows, strict=True)])
    accuracies = [fmean(islice(right, len(of_site))) for of_site in of_sites]
    assert len(files) == len(POOLS)
    # The run measured 50 documents of each site: four standard deviations of an accuracy of 150.
    assert abs(fmean(accuracies) - finished["status"]["metric"]["value"]) < 0.16
    assert torch.allclose(scores, scores_of(merged, rows, quickstart), atol=1e-3)


def scores_of(model: Any, rows: list[Mapping[str, str]], quickstart: FleetNamespace) -> "torch.Tensor":
    import torch  # noqa: PLC0415 -- as above
    from transformers import AutoTokenizer  # noqa: PLC0415 -- as above

    tokenizer = AutoTokenizer.from_pretrained(quickstart.fleet / "volumes/models" / MODEL)
    texts = [row["text"] for row in rows]
    batch = tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**batch).logits
    return logits


def test_a_deleted_run_leaves_only_its_results(quickstart: FleetNamespace, store: S3Store, finished: Plain) -> None:
    quickstart.kubectl("delete", FFT, "quickstart")

    quickstart.wait("its objects are gone", lambda: not quickstart.remaining_objects(finished))
    assert any(key.startswith(names.EXPORT_ADAPTER) for key in store.list("export"))

"""The map of this machine: where a site's trainer finds model and data, and what it may use."""

from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from stand_in_runs import a_run, a_site

from fedpipe_operator.backend import JobResources
from fedpipe_operator.reconcile.placement import in_folders
from fedpipe_trainer.contract import Data


def test_a_claim_is_the_folder_of_that_name_below_the_volumes(tmp_path: Path) -> None:
    run = a_run(2, model={"source": "pvc://models/deep/toy"})

    inputs = in_folders(tmp_path).inputs(run, "site-b")

    assert inputs.model.source == f"file://{tmp_path}/models/deep/toy"
    assert inputs.data == Data(train=f"{tmp_path}/site-b/train.jsonl", validation=f"{tmp_path}/site-b/validation.jsonl")


def test_a_folder_in_a_claim_is_read_as_it_is_written_and_leads_to_no_other_volume(tmp_path: Path) -> None:
    inputs = in_folders(tmp_path).inputs(a_run(2, model={"source": "pvc://models/%2e%2e/site-b/a b?c"}), "site-b")

    assert Path(unquote(urlparse(inputs.model.source).path)) == tmp_path / "models" / "%2e%2e" / "site-b" / "a b?c"


def test_volumes_beside_a_relative_path_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    inputs = in_folders(Path("volumes")).inputs(a_run(1), "site-a")

    assert inputs.model.source == f"file://{tmp_path}/volumes/models/toy"
    assert inputs.data is not None
    assert inputs.data.train == f"{tmp_path}/volumes/site-a/train.jsonl"


@pytest.mark.parametrize("source", ["hf://org/name@revision", "file:///models/toy"])
def test_a_model_that_is_not_in_a_claim_keeps_its_source(tmp_path: Path, source: str) -> None:
    assert in_folders(tmp_path).inputs(a_run(model={"source": source}), "site-a").model.source == source


@pytest.mark.parametrize("source", ["hf://org/name@revision", "pvc://models/toy"])
def test_the_way_of_computing_attention_goes_with_the_model(tmp_path: Path, source: str) -> None:
    models = [{"source": source}, {"source": source, "attnImplementation": "eager"}]

    found = [in_folders(tmp_path).inputs(a_run(model=model), "site-a").model.attn_implementation for model in models]

    assert found == [None, "eager"]


@pytest.mark.parametrize("site", ["site-a", ""])
def test_every_task_knows_the_modules_that_are_trained_whole(tmp_path: Path, site: str) -> None:
    run = a_run(planning={"modulesToSave": ["embed_tokens", "lm_head"]})

    assert in_folders(tmp_path).inputs(run, site).model.modules_to_save == ("embed_tokens", "lm_head")


def test_a_task_of_the_run_itself_gets_the_model_and_no_data(tmp_path: Path) -> None:
    inputs = in_folders(tmp_path).inputs(a_run(), "")

    assert inputs.data is None
    assert inputs.model.source.endswith("/models/toy")


@pytest.mark.parametrize(
    ("capacity", "resources"),
    [
        ({"memory": "3Gi", "cpu": "2"}, JobResources(memory_bytes=3 * 2**30, cpus=2)),
        ({"memory": "500M", "cpu": "2500m"}, JobResources(memory_bytes=500_000_000, cpus=2)),
        ({"cpu": "250m"}, JobResources(memory_bytes=None, cpus=1)),
        ({}, JobResources(memory_bytes=None, cpus=None)),
    ],
)
def test_the_limits_of_a_site_are_its_claimed_capacity(tmp_path: Path, capacity: dict[str, str], resources: JobResources) -> None:
    run = a_run([a_site("small", capacity=capacity), a_site("large", capacity={"memory": "64Gi", "cpu": "32"})])

    assert in_folders(tmp_path).resources(run, "small") == resources


def test_a_sites_cache_is_a_folder_for_the_runs_namespace_in_its_claim(tmp_path: Path) -> None:
    run = a_run([a_site("with", cache={"persistentVolumeClaim": {"claimName": "ward-cache"}}), a_site("without")])

    assert in_folders(tmp_path).resources(run, "with").cache == f"{tmp_path}/ward-cache/{run.resource.metadata.namespace}"
    assert in_folders(tmp_path).resources(run, "without").cache is None
    assert in_folders(tmp_path).resources(run, "").cache is None


def test_a_task_of_the_run_itself_has_no_limits(tmp_path: Path) -> None:
    assert in_folders(tmp_path).resources(a_run([a_site("a", capacity={"memory": "1Gi", "cpu": "1"})]), "") == JobResources()

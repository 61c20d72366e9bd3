"""`fedpipe run` from YAML to adapter: real processes, a toy model, a folder or a real S3 server as the store."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from local_runs import MANUAL, Fleet
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

# Slow (`make slow`): each run starts trainers, and the imports of a trainer take ten seconds.
pytestmark = pytest.mark.slow

LABELS = ["art", "food", "sport"]
UNEXPORTED = {"adapter": False, "merged": False}
"""For runs whose test reads no export, which takes a process of its own and its imports."""


def test_a_run_prints_plans_rounds_and_the_comparison_table(finished: tuple[Fleet, str]) -> None:
    _, output = finished

    assert "plan: 32 bits, rank 4 on 8 weights, batch 4, 4 steps" in output
    assert "round 2: 3/3 updates, accuracy" in output
    for row in ("base", "north", "south", "west", "federated"):
        assert row in output
    assert "report.html" in output


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PeftModel reads it
def test_the_exported_adapter_and_the_merged_model_load_and_agree(finished: tuple[Fleet, str]) -> None:
    fleet, _ = finished
    base = AutoModelForSequenceClassification.from_pretrained(fleet.folder / "volumes/models/toy", num_labels=3)
    adapted = PeftModel.from_pretrained(base, fleet.store / "export/adapter").eval()
    merged = AutoModelForSequenceClassification.from_pretrained(fleet.store / "export/merged").eval()
    text = AutoTokenizer.from_pretrained(fleet.store / "export/merged")(["ball goal", "oven salt bread"], return_tensors="pt", padding=True)

    with torch.no_grad():
        torch.testing.assert_close(merged(**text).logits, adapted(**text).logits, atol=1e-4, rtol=1e-4)
    assert [merged.config.id2label[at] for at in range(3)] == LABELS


def test_every_round_left_its_plan_updates_commit_and_evaluation(finished: tuple[Fleet, str]) -> None:
    fleet, _ = finished
    for round_ in ("0001", "0002"):
        commit = json.loads((fleet.store / f"rounds/{round_}/global/commit.json").read_text())

        assert [contribution["site"] for contribution in commit["contributions"]] == ["north", "south", "west"]
        assert (fleet.store / commit["adapter"]["name"]).stat().st_size == commit["adapter"]["size"]
        assert (fleet.store / f"rounds/{round_}/evaluation.json").exists()


def test_the_comparison_evaluates_every_model_on_the_validation_data_of_all_sites(finished: tuple[Fleet, str]) -> None:
    fleet, _ = finished
    comparison = json.loads((fleet.store / "comparison/comparison.json").read_text())

    assert sorted(comparison["localOnly"]) == ["north", "south", "west"]
    for evaluation in (comparison["base"], comparison["federated"], *comparison["localOnly"].values()):
        assert sum(site["samples"] for site in evaluation["sites"].values()) == 18


def test_a_local_only_baseline_takes_as_many_steps_as_its_site_took_in_all_rounds(finished: tuple[Fleet, str]) -> None:
    fleet, _ = finished
    result = json.loads((fleet.store / "comparison/local-only/north/rounds/0001/updates/north/0/result.json").read_text())

    assert result["steps"] == 8


def test_what_a_site_cached_in_one_round_is_read_in_the_next_one_as_it_was_forecast(fleet: Fleet) -> None:
    """Of the six batches of each site, a round takes four: so the second one finds four of six in the cache, on average."""
    given = {"bits": 32, "rank": 4, "steps": 4, "layers": 1, "cacheActivations": True}
    fleet.change("FederatedFineTune", planning=MANUAL | {"plans": [given]}, export=UNEXPORTED)
    documents = list(yaml.safe_load_all((fleet.folder / "run.yaml").read_text()))
    for document in documents[1:]:
        claim = f"{document['metadata']['name']}-cache"
        document["spec"]["cache"] = {"persistentVolumeClaim": {"claimName": claim}}
        (fleet.folder / "volumes" / claim).mkdir()
    (fleet.folder / "run.yaml").write_text(yaml.safe_dump_all(documents))

    fleet.run("--no-compare")

    plans, commits = (
        [json.loads((fleet.store / f"rounds/000{round_}/{file}").read_text()) for round_ in (1, 2)]
        for file in ("plan.json", "global/commit.json")
    )
    expected = [{site: round(plan["forecast"]["cachedShare"], 3) for site, plan in record["plans"].items()} for record in plans]
    measured = [{one["site"]: one["measured"] for one in commit["contributions"]} for commit in commits]
    assert expected == [dict.fromkeys(measured[0], 0.0), dict.fromkeys(measured[0], 0.667)]
    assert {site: (one["cacheHits"], one["cacheMisses"]) for site, one in measured[0].items()} == dict.fromkeys(measured[0], (0, 4))
    assert all(one["cacheHits"] >= 2 and one["cacheHits"] + one["cacheMisses"] == 4 for one in measured[1].values())


def test_the_same_command_after_the_end_prints_the_result_and_runs_no_task(finished: tuple[Fleet, str]) -> None:
    fleet, _ = finished
    before = {path: path.stat().st_mtime_ns for path in fleet.store.rglob("result.json")}

    assert "federated" in fleet.run()
    assert {path: path.stat().st_mtime_ns for path in fleet.store.rglob("result.json")} == before


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_is_resumed_and_ends_with_the_same_bytes(finished: tuple[Fleet, str], fleet: Fleet, signal_: signal.Signals) -> None:
    fleet.change("FederatedFineTune", export=UNEXPORTED)
    stopped = fleet.start("--no-compare")
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if "train of round 1" in line:
            break
    os.kill(stopped.pid, signal_)
    stopped.communicate()

    assert stopped.returncode == (130 if signal_ is signal.SIGINT else -signal.SIGKILL)
    fleet.run("--no-compare")
    assert fleet.adapters() == finished[0].adapters()


def test_a_second_run_of_the_same_name_is_refused_while_the_first_is_active(fleet: Fleet) -> None:
    first = fleet.start("--no-compare")
    assert first.stdout is not None
    next(iter(first.stdout))

    assert f"RunInProgress: another fedpipe run (process {first.pid})" in fleet.run(expect=1)
    first.send_signal(signal.SIGTERM)
    assert "stopped; run the same command again to resume" in first.communicate()[0]


def test_another_spec_under_the_same_name_is_refused_and_fresh_starts_over(finished: tuple[Fleet, str], tmp_path: Path) -> None:
    copy = Fleet(tmp_path / "copy")
    shutil.copytree(finished[0].folder, copy.folder)
    assert "OtherSpec" in copy.run("--rounds", "1", expect=1)

    output = copy.run("--rounds", "1", "--no-compare", "--fresh")

    assert "round 1:" in output
    assert not (copy.store / "rounds/0002").exists()


def test_a_run_continues_without_a_site_whose_data_file_is_missing(fleet: Fleet) -> None:
    (fleet.folder / "volumes/west-data/train.jsonl").unlink()
    fleet.change("FederatedFineTune", sites={"quorum": 0.6}, rounds={"count": 1}, export=UNEXPORTED)

    output = fleet.run("--no-compare")

    assert "west" in output
    assert "BadData" in output
    assert "train.jsonl" in output
    assert "round 1: 2/2 updates" in output


def test_rows_of_a_label_that_no_other_site_has_are_dropped_and_their_number_is_told(fleet: Fleet) -> None:
    for file in ("train", "validation"):
        with (fleet.folder / f"volumes/south-data/{file}.jsonl").open("a") as rows:
            rows.write('{"text": "once", "label": "c4n4ry"}\n{"text": "twice", "label": "c4n4ry"}\n')
    task = {"type": "SequenceClassification", "maxLength": 32}
    fleet.change("FederatedFineTune", task=task, rounds={"count": 1}, export=UNEXPORTED)

    output = fleet.run("--no-compare")

    status = (fleet.store.parent / "status.json").read_text()
    assert json.loads((fleet.store / "rounds/0001/plan.json").read_text())["labels"] == ["art", "food", "sport"]
    assert json.loads(status)["history"][0]["droppedRows"] == {"south": 2}
    assert "(4 rows dropped: fewer than two sites have their label)" in (fleet.store / "report.html").read_text()
    told = [output, status, *(path.read_text() for path in fleet.folder.rglob("log")), (fleet.store / "report.html").read_text()]
    assert not any("c4n4ry" in text for text in told)


def test_a_model_folder_without_tokenizer_fails_the_run_with_the_missing_file(fleet: Fleet) -> None:
    for file in (fleet.folder / "volumes/models/toy").glob("tokenizer*"):
        file.unlink()

    output = fleet.run(expect=1)

    assert "QuorumOutOfReach" in output
    assert "tokenizer" in output


def test_a_site_with_too_little_memory_is_excluded_with_the_numbers(fleet: Fleet) -> None:
    documents = (fleet.folder / "run.yaml").read_text().split("---\n")
    small = [text.replace("memory: 4Gi", "memory: 300Mi") if "name: south" in text else text for text in documents]
    (fleet.folder / "run.yaml").write_text("---\n".join(small))
    fleet.change("FederatedFineTune", sites={"quorum": 0.6}, rounds={"count": 1}, export=UNEXPORTED)

    output = fleet.run("--no-compare")

    assert "south          excluded: " in output
    assert "round 1: 2/2 updates" in output


def test_trainers_end_with_the_run_that_started_them(fleet: Fleet) -> None:
    run = fleet.start("--no-compare")
    assert run.stdout is not None
    next(iter(run.stdout))
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    run.communicate()

    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_without_a_learning_rate_the_sites_test_some_and_the_run_uses_the_one_that_is_chosen(fleet: Fleet) -> None:
    fleet.change("FederatedFineTune", training={}, rounds={"count": 1}, export=UNEXPORTED)

    output = fleet.run("--no-compare")

    plan = json.loads((fleet.store / "rounds/0001/plan.json").read_text())
    (shown,) = [line for line in output.splitlines() if "training.learningRate " in line]
    tests = [json.loads(path.read_text())["rangeTest"] for path in fleet.store.glob("profile/*/0/result.json")]
    assert shown.split()[:2] == ["training.learningRate", f"{plan['learningRate']:g}:"]
    assert "after 8 steps at 3 of 3 sites" in shown
    default = 2e-4  # where no rate gains anything in so few steps, as may be with so small a model
    assert plan["learningRate"] in {one["learningRate"] for test in tests for one in test["rates"]} | {default}
    assert [test["samples"] for test in tests] == [6, 6, 6]


def test_plan_trains_nothing_and_run_continues_from_it(fleet: Fleet) -> None:
    fleet.change("FederatedFineTune", rounds={"count": 1}, export=UNEXPORTED)
    command = [part if part != "run" else "plan" for part in fleet.command()]
    planned = subprocess.run(command, capture_output=True, text=True, check=True, env=fleet.environment(None)).stdout

    assert "given by planning.plans" in planned
    assert "north" in planned
    assert not list(fleet.store.glob("rounds/*/updates/*"))
    before = (fleet.store / "profile/north/0/result.json").stat().st_mtime_ns
    fleet.run("--no-compare")
    assert (fleet.store / "profile/north/0/result.json").stat().st_mtime_ns == before

"""An invented but realistic run: three heterogeneous sites and one too small, six rounds, twelve layers of four weights."""

import math

import pytest

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.planning import Hyperparameter
from fedpipe_operator.report import RunRecord
from fedpipe_operator.rounds.records import Comparison, Contribution, RoundCommit, RoundEvaluation, RoundPlan, SiteEvaluation, Verdict
from fedpipe_trainer.contract import (
    Artifact,
    BaseModelFacts,
    EvaluateResult,
    ExportResult,
    Forecast,
    Measured,
    Outcome,
    Plan,
    ProfileResult,
    RunRef,
    Sample,
    TrainResult,
)

ROUNDS = 6
LAYERS = 12
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj")
SITES = {"clinic-north": 16, "hospital-east": 8, "practice-south": 4}
SAMPLES = {"clinic-north": 3180, "hospital-east": 1712, "practice-south": 655}
LOWEST_LAYER = {"practice-south": 4}
MIB = 1024**2
SHA = "a" * 64
REF = RunRef(namespace="default", name="newsgroups", uid="0b5c")
BASE = BaseModelFacts(
    architecture="llama",
    parameters=134_500_000,
    quantised_parameters=106_000_000,
    layers=LAYERS,
    hidden_size=576,
    intermediate_size=1536,
    attention_heads=9,
    vocabulary_size=49152,
    weights=(),
)


def weights() -> list[str]:
    return [f"model.layers.{layer}.self_attn.{kind}" for layer in range(LAYERS) for kind in KINDS]


def a_run(**status: object) -> FederatedFineTune:
    return FederatedFineTune.model_validate(
        {
            "metadata": {"name": "newsgroups", "uid": "0b5c"},
            "spec": {
                "model": {"source": "hf://HuggingFaceTB/SmolLM2-135M@93efa2f"},
                "task": {"type": "SequenceClassification"},
                "rounds": {"count": ROUNDS},
                "evaluation": {"samples": 2},
                "store": {"bucket": "fedpipe"},
            },
            "status": status,
        }
    )


def a_plan(site: str) -> Plan:
    bits = SITES[site]
    ranks = {name: _rank(site, index // len(KINDS), index % len(KINDS)) for index, name in enumerate(weights())}
    forecast = Forecast(memory_bytes=bits * 52 * MIB, seconds=14.0 + 64 / bits, upload_bytes=bits * MIB // 4, download_bytes=4 * MIB)
    why = (
        f"{bits} bits is the most precise base that fits {bits * 60} MiB beside batch {bits // 2}.",
        f"Rank {bits} is the highest that keeps the upload below a tenth of the round.",
    )
    lowest = LOWEST_LAYER.get(site, 0)
    fields = {"bits": bits, "batch_size": bits // 2, "steps": 40, "ranks": ranks, "lowest_layer": lowest, "forecast": forecast, "why": why}
    return Plan.model_validate(fields)


def _rank(site: str, layer: int, kind: int) -> int:
    top = SITES[site] * 2
    return 0 if layer < LOWEST_LAYER.get(site, 0) else top if kind in {0, 2} else top // 2


def a_round_plan(round_: int) -> RoundPlan:
    return RoundPlan(
        round=round_,
        started_at=1000.0 + 60 * round_,
        fingerprint=SHA,
        weights=dict.fromkeys(weights(), (576, 576)),
        plans={site: a_plan(site) for site in SITES},
        samples=SAMPLES,
        selected=tuple(SITES),
        evaluators=tuple(SITES),
        needed=2,
        learning_rate=3e-3,
        hyperparameters=(Hyperparameter(name="training.learningRate", value="0.003", reason="It has the lowest loss of 5 rates."),),
        importance={name: 0.5 + index / (len(weights()) - 1) for index, name in enumerate(weights())},
        importance_note="The gradients of three sites; the two halves of their data agree (rank correlation 0.91).",
        excluded={"kiosk-west": "256 MiB cannot hold the model at any of 4, 8, 16 bits: the least is 391 MiB."},
    )


def an_update(site: str, round_: int) -> TrainResult:
    plan, forecast = a_plan(site), a_plan(site).forecast
    steps = range(40 * (round_ - 1), 40 * round_)
    return TrainResult(
        run=REF,
        site=site,
        round=round_,
        attempt=0,
        outcome=Outcome.COMPLETED,
        adapter=Artifact(name="adapter.safetensors", size=MIB, sha256=SHA),
        measured=Measured(
            peak_memory_bytes=round(forecast.memory_bytes * (1 + round_ / 100)),
            seconds={"load": forecast.seconds * 0.1, "train": forecast.seconds * 0.7, "transfer": forecast.seconds * 0.1},
            uploaded_bytes=forecast.upload_bytes,
            downloaded_bytes=forecast.download_bytes * 2,
        ),
        fingerprint=SHA,
        ranks=plan.ranks,
        scales={weight: plan.scale(weight) for weight in plan.ranks},
        steps=plan.steps,
        samples=plan.steps * plan.batch_size,
        losses=tuple(0.7 + 2.2 * math.exp(-step / 90) + 0.12 * math.sin(7 * step + SAMPLES[site]) for step in steps),
    )


def an_evaluation(round_: int, *, best: float = 0.78) -> RoundEvaluation:
    accuracy = best - (best - 0.061) * math.exp(-round_ / 1.6)
    sites = {
        site: SiteEvaluation(
            samples=300, targets=300, loss=3.1 - 2.6 * (accuracy + 0.02 * index), metrics={"accuracy": accuracy + 0.04 * (index - 1)}
        )
        for index, site in enumerate(SITES)
    }
    metrics = {"accuracy": accuracy, "macroF1": accuracy - 0.013}
    return RoundEvaluation(round=round_, finished_at=1052.0 + 60 * round_, loss=3.1 - 2.6 * accuracy, metrics=metrics, sites=sites)


def a_commit(round_: int) -> RoundCommit:
    updated = [site for site in SITES if not (round_ == 3 and site == "practice-south")]
    total = sum(SAMPLES[site] for site in updated)
    contributions = [
        Contribution(site=site, attempt=0, sha256=SHA, samples=SAMPLES[site], steps=40, share=SAMPLES[site] / total, norm=0.5)
        for site in updated
    ]
    refused = (
        {} if len(updated) == len(SITES) else {"practice-south": Verdict(accepted=False, reason="NotFinite", message="lora_B has NaN.")}
    )
    return RoundCommit(
        round=round_,
        method="Exact",
        adapter=Artifact(name="adapter.safetensors", size=4 * MIB, sha256=SHA),
        ranks=dict.fromkeys(weights(), 32),
        contributions=tuple(contributions),
        refused=refused,
        learned={name: 0.1 * (index + 1) for index, name in enumerate(weights())},
        finished_at=1052.0 + 60 * round_,
        truncated_energy={name: 0.0004 * round_ * (1 + index % 7) for index, name in enumerate(weights())},
    )


def a_site_evaluation(site: str, round_: int) -> EvaluateResult:
    examples = (
        Sample(text="The shuttle reached orbit this morning " * 6, expected="sci.space", predicted="sci.space"),
        Sample(text="Selling a barely used 486 board & case, <fast>", expected="misc.forsale", predicted="comp.sys.ibm.pc.hardware"),
    )
    return EvaluateResult(
        run=REF,
        site=site,
        round=round_,
        attempt=0,
        outcome=Outcome.COMPLETED,
        measured=Measured(),
        samples=300,
        targets=300,
        examples=examples,
    )


def a_profile(site: str) -> ProfileResult:
    return ProfileResult(
        run=REF,
        site=site,
        round=0,
        attempt=0,
        outcome=Outcome.COMPLETED,
        fingerprint=SHA,
        base=BASE,
        measured=Measured(device="cpu"),
        software={"torch": "2.13.0", "peft": "0.21.2"},
        train_samples=SAMPLES[site],
        skipped_rows=3 if site == "hospital-east" else 0,
        memory_bytes=SITES[site] * 60 * MIB,
    )


@pytest.fixture
def record() -> RunRecord:
    """A finished run with everything a report can show."""
    rounds = range(1, ROUNDS + 1)
    return RunRecord(
        run=a_run(),
        plans={round_: a_round_plan(round_) for round_ in rounds},
        updates={round_: {site: an_update(site, round_) for site in SITES} for round_ in rounds},
        rounds={round_: a_commit(round_) for round_ in rounds},
        evaluations={round_: an_evaluation(round_) for round_ in (0, *rounds)},
        site_evaluations={ROUNDS: {site: a_site_evaluation(site, ROUNDS) for site in SITES}},
        profiles={site: a_profile(site) for site in SITES},
        export=ExportResult(
            run=REF, site="", round=ROUNDS, attempt=0, outcome=Outcome.COMPLETED, measured=Measured(), max_logit_difference=3.1e-5
        ),
        comparison=Comparison(
            base=an_evaluation(0),
            local_only={site: an_evaluation(ROUNDS, best=0.5 + SAMPLES[site] / 16000) for site in SITES},
            federated=an_evaluation(ROUNDS),
        ),
    )


@pytest.fixture
def bare_record() -> RunRecord:
    """A run that was just applied."""
    return RunRecord(run=a_run())

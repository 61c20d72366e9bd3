"""The memory model: compared with peaks measured on a CPU and on a GPU, and its general properties."""

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_profiles import LLAMA_7B, MPNET, SMOLLM2, a_site, a_spec, point

from fedpipe_operator.planning import RunOptions, Step, training_peak
from fedpipe_operator.planning.calibration import Calibration, calibrate
from fedpipe_operator.planning.memory_model import TrainingMemory, base_bytes, calibration_of
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.sizes import uniform_ranks
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Bits

TEXTS = {"type": "CausalLM", "prompt": "{a}", "response": "{b}", "maxLength": 128}
MODELS = {"SmolLM2-135M": SMOLLM2, "MPNet-base": MPNET}
BITS: tuple[Bits, ...] = (4, 8, 16, 32)
PROFILED = ((1, 128), (4, 128), (8, 128))
"""Batch and length of the points that a profile measures; the other rows of the table are forecast from them."""


def measured_peaks(model: str, bits: int, table: str = "measured_peaks.csv") -> list[dict[str, int]]:
    """Rows of a table (columns in MB), LoRA of rank 8 on q, k, v and o; the default table: transformers and peft, 2 cores."""
    with Path(__file__).with_name(table).open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model and row["bits"] == str(bits)]
    return [{key: int(value) for key, value in row.items() if key != "model"} for row in rows]


def profiled(model: str, bits: Bits, rows: list[dict[str, int]]) -> SiteProfile:
    points = [row for row in rows if (row["batch"], row["length"]) in PROFILED]
    return a_site(
        base=MODELS[model],
        labels=tuple(map(str, range(20))) if MODELS[model].head else (),
        runtime_bytes=rows[0]["runtime_mb"] * 10**6,
        points=tuple(point(bits=bits, batch=row["batch"], length=row["length"], peak=row["peak_mb"] * 1e6) for row in points),
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("model", MODELS)
def test_forecasts_are_within_15_percent_of_the_measurement(model: str, bits: Bits) -> None:
    rows = measured_peaks(model, bits)
    site = profiled(model, bits, rows)
    ranks = uniform_ranks(site.base.weights, 8)

    ratios = [training_peak(site, bits=bits, step=Step(row["batch"], row["length"]), ranks=ranks) / row["peak_mb"] / 1e6 for row in rows]

    assert len(ratios) == 7
    assert all(0.85 <= ratio <= 1.15 for ratio in ratios), ratios


# The GPU's 7B has random weights and SmolLM2's vocabulary (benchmarks/random_model.py).
ON_GPU = {"SmolLM2-135M": SMOLLM2, "LLaMA-7B": LLAMA_7B.model_copy(update={"vocabulary_size": SMOLLM2.vocabulary_size})}


@pytest.mark.parametrize(("model", "bits"), [*(("SmolLM2-135M", bits) for bits in BITS), *(("LLaMA-7B", bits) for bits in (4, 16))])
def test_on_a_gpu_forecasts_are_within_15_percent_of_the_measurement(model: str, bits: Bits) -> None:
    """Peaks of train tasks on an NVIDIA H100; a profile measures every batch at one length, and the largest batch at both."""
    peaks = {(row["batch"], row["length"]): row["peak_mb"] * 1e6 for row in measured_peaks(model, bits, "measured_peaks_h100.csv")}
    points = tuple(
        point(bits=bits, batch=batch, length=length, peak=measured)
        for (batch, length), measured in peaks.items()
        if length == min(peaks)[1] or (batch, length) == max(peaks)
    )
    site = a_site(device="NVIDIA H100", base=ON_GPU[model], runtime_bytes=0, points=points)
    ranks = uniform_ranks(site.base.weights, 8)

    forecasts = {(batch, length): training_peak(site, bits=bits, step=Step(batch, length), ranks=ranks) for batch, length in peaks}

    assert len(points) < len(peaks) >= 4
    assert all(0.85 <= forecasts[step] / peaks[step] <= 1.15 for step in peaks), forecasts


def peak(site: SiteProfile, *, rank: int = 8, bits: Bits = 16, options: RunOptions | None = None, **changes: Any) -> float:
    """The peak of a step of 4 × 128 tokens, or with the changes to it."""
    step = replace(Step(4, 128), **changes)
    return training_peak(site, bits=bits, step=step, ranks=uniform_ranks(site.base.weights, rank), options=options or RunOptions())


def test_on_a_gpu_more_bits_need_more_memory() -> None:
    site = a_site(device="NVIDIA A10", base=LLAMA_7B)
    peaks = [peak(site, bits=bits) for bits in BITS]

    assert all(fewer < more for fewer, more in pairwise(peaks))


def test_on_a_cpu_fewer_bits_do_not_shrink_the_peak_of_a_small_model() -> None:
    four, eight, sixteen = (
        peak(profiled("SmolLM2-135M", bits, measured_peaks("SmolLM2-135M", bits)), bits=bits, batch=8) for bits in (4, 8, 16)
    )

    assert four > 0.97 * sixteen
    assert eight > sixteen


def test_a_7b_base_in_4_bits_has_4_127_bits_for_each_quantised_weight() -> None:
    expected = LLAMA_7B.quantised_parameters * 4.127 / 8 + 2 * (LLAMA_7B.parameters - LLAMA_7B.quantised_parameters)

    assert base_bytes(a_site(base=LLAMA_7B), 4) == pytest.approx(expected)


def test_measured_bytes_of_the_base_replace_the_formula() -> None:
    assert base_bytes(a_site(base_bytes={4: 123}), 4) == 123


def test_each_parameter_of_an_adapter_costs_16_bytes() -> None:
    site = a_site()
    parameters = sum(weight.d_in + weight.d_out for weight in site.base.weights)

    assert peak(site, rank=9) - peak(site, rank=8) == pytest.approx(16 * parameters, abs=1)


def test_a_proximal_term_costs_4_bytes_more_for_each_trained_parameter_and_changes_no_measurement() -> None:
    site, head = a_site(base=MPNET, labels=("a", "b")), {"classifier.dense.weight": (768, 768)}
    trained = 8 * sum(weight.d_in + weight.d_out for weight in site.base.weights) + 768 * 768
    with_term, without = (peak(site, options=RunOptions(head=head, is_proximal=is_proximal)) for is_proximal in (True, False))

    assert with_term - without == pytest.approx(4 * trained, abs=1)
    measured = replace(site, points=(point(bits=16, batch=4, peak=without),))
    terms = [peak(measured, options=RunOptions(head=head, is_proximal=is_proximal)) for is_proximal in (True, False)]
    assert terms[0] - terms[1] == pytest.approx(4 * trained, abs=1), "a profile measures its steps without the term"


def test_the_frozen_residual_costs_4_bytes_for_each_parameter_that_a_site_does_not_train() -> None:
    site = a_site()
    parameters = sum(weight.d_in + weight.d_out for weight in site.base.weights)

    assert peak(site, options=RunOptions(global_rank=32)) - peak(site) == pytest.approx(24 * 4 * parameters, abs=1)
    assert peak(site, options=RunOptions(global_rank=8)) == peak(site)


def test_a_trained_head_has_the_runs_labels() -> None:
    site = a_site(base=MPNET, labels=("a", "b"))
    wide = RunOptions(head={"classifier.dense.weight": (768, 768), "classifier.out_proj.weight": (1002, 768)})

    assert peak(site, options=wide) - peak(site) == pytest.approx(16 * 1000 * 768, abs=1)


def test_checkpointing_saves_activations_but_keeps_the_logits() -> None:
    site = a_site()
    saved = peak(site, batch=8) - peak(site, batch=8, checkpointing=True)
    logits = 8 * 128 * 20 * SMOLLM2.vocabulary_size

    assert 0.8e9 < saved < peak(site, batch=8) - logits


def test_layers_below_the_lowest_trained_one_keep_no_activations() -> None:
    site = a_site()
    layers = SMOLLM2.layers
    peaks = [peak(site, batch=8, lowest_layer=lowest) for lowest in range(layers + 1)]
    a_layer = peaks[0] - peaks[1]

    assert a_layer > 0
    assert [more - less for more, less in pairwise(peaks)] == pytest.approx([a_layer] * (layers - 1) + [0], rel=1e-6)


def test_checkpointing_saves_less_the_fewer_layers_are_trained() -> None:
    site = a_site()
    saved = [peak(site, lowest_layer=lowest) - peak(site, lowest_layer=lowest, checkpointing=True) for lowest in (0, 15, 29)]

    assert saved[0] > saved[1] > 0 >= saved[2]


def test_a_peak_of_the_upper_layers_calibrates_the_activations_of_the_upper_layers() -> None:
    site = a_site()
    ranks = {weight.name: 8 for weight in SMOLLM2.weights if weight.layer >= 15}
    formula = training_peak(site, bits=16, step=Step(8, 128, lowest_layer=15), ranks=ranks)

    shallow = point(bits=16, batch=8, peak=formula).model_copy(update={"lowest_layer": 15})

    calibrated = calibration_of(replace(site, points=(shallow,)), 16)
    assert (calibrated.factor, calibrated.offset) == pytest.approx((1, 0), abs=1e-3)


def test_the_memory_of_many_steps_is_that_of_each() -> None:
    site = a_site(base=MPNET, labels=("a", "b"))
    many = Step(np.array([1, 4, 8]), 64, lowest_layer=np.array([0, 6, 11]), checkpointing=np.array([False, True, False]))
    each = [Step(1, 64), Step(4, 64, lowest_layer=6, checkpointing=True), Step(8, 64, lowest_layer=11)]

    memory = TrainingMemory.at(site, 8, RunOptions())

    assert memory.without_adapters(many) == pytest.approx([float(memory.without_adapters(step)) for step in each])


def test_attention_that_keeps_its_scores_grows_with_the_square_of_the_length() -> None:
    eager = a_site(base=MPNET)
    fused = replace(eager, base=MPNET.model_copy(update={"materialised_attention": False}))

    scores = [peak(eager, length=length) - peak(fused, length=length) for length in (128, 256)]

    assert scores[1] == pytest.approx(4 * scores[0], rel=1e-6)


def test_without_points_the_analytic_form_is_used() -> None:
    assert calibrate([]) == Calibration(factor=1.0, offset=0.0)


def test_points_of_another_bit_width_are_not_used_for_calibration() -> None:
    site = a_site(points=(point(bits=16, batch=8, peak=9e9),))

    assert calibration_of(site, 4) == Calibration()
    assert calibration_of(site, 16).factor > 1


def test_peaks_that_shrink_with_the_batch_do_not_make_the_forecast_shrink() -> None:
    site = a_site(points=(point(bits=16, batch=1, peak=4e9), point(bits=16, batch=8, peak=2e9)))

    assert peak(site, batch=8) > peak(site, batch=1)


def test_a_pair_is_planned_for_with_both_its_answers() -> None:
    """Its longest sample has twice `maxLength`, so the forecast of a site that does not tell its lengths has that, too."""
    untold = a_site(longest_tokens=0)
    pairs, texts = (PlanRequest(spec=a_spec(task=task), head={}) for task in ({"type": "Preference", "maxLength": 128}, TEXTS))

    assert (pairs.longest_sequence(untold), texts.longest_sequence(untold)) == (256, 128)
    assert pairs.longest_sequence(replace(untold, longest_tokens=200)) == 200
    assert pairs.longest_sequence(replace(untold, longest_tokens=10**6)) == 256

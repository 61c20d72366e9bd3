"""Summaries of plans: the table of `fedpipe plan`, the status of a run, and all sentences of a fleet."""

from pathlib import Path
from typing import Any

from site_profiles import GIB, a_site, a_spec, point, speeds

from fedpipe_operator.api import PlanStatus
from fedpipe_operator.planning import PlanRow, Plans, plan_round, plan_rows, plan_status
from fedpipe_trainer.contract import Bits, Forecast, Plan

GOLDEN = Path(__file__).with_name("golden") / "three_sites.txt"
CLINIC: tuple[tuple[Bits, int, int, float], ...] = (
    (4, 1, 265, 1.61e9),
    (4, 8, 380, 3.19e9),
    (8, 1, 150, 1.68e9),
    (8, 8, 177, 3.36e9),
    (16, 1, 325, 1.57e9),
    (16, 8, 340, 3.12e9),
)
"""Bits, batch, tokens a second, peak: as measured with SmolLM2-135M on 2 cores."""


def as_text(plans: Plans) -> str:
    lines = []
    for row in plan_rows(plans):
        lines.append(" · ".join(value for value in row._replace(forecast="") if isinstance(value, str) and value))
        lines += [f"  {sentence}" for sentence in (row.forecast, *row.ranks, *row.why) if sentence]
    return "\n".join(lines) + "\n"


def test_the_reasons_of_three_heterogeneous_sites_are_as_recorded() -> None:
    fleet = {
        "clinic": a_site(
            "clinic",
            memory_bytes=3 * GIB,
            train_samples=400,
            runtime_bytes=838_000_000,
            points=tuple(point(bits=bits, batch=batch, speed=speed, peak=peak) for bits, batch, speed, peak in CLINIC),
        ),
        "hospital": a_site("hospital", device="NVIDIA A10", memory_bytes=24 * GIB, train_samples=4000, points=speeds(20_000.0)),
        "phone": a_site("phone", memory_bytes=int(1.75 * GIB), up=2e6, down=10e6, points=speeds(150.0), unsupported={8: "no int8 kernel"}),
        "watch": a_site("watch", memory_bytes=GIB, train_samples=60),
    }
    spec = a_spec(planning={"bits": [4, 8, 16]}, rounds={"deadline": "3m"})

    assert as_text(plan_round(spec, fleet, {}).plans) == GOLDEN.read_text()


def a_plan(why: tuple[str, ...] = ("because",), **changes: Any) -> Plan:
    forecast = Forecast(memory_bytes=3 * GIB, seconds=75.04321, step_seconds=60.04321, upload_bytes=2048, download_bytes=4096)
    fields: dict[str, Any] = {"bits": 4, "batch_size": 8, "steps": 9, "ranks": {"q": 8, "k": 0, "v": 16}, "layers": 6, "lowest_layer": 2}
    return Plan(**(fields | {"forecast": forecast, "limited_by": "Time", "why": why} | changes))


def the_row(plan: Plan) -> PlanRow:
    return plan_rows(Plans(plans={"b": plan}, excluded={}))[0]


def test_a_row_shows_the_range_of_the_ranks_and_counts_the_adapters() -> None:
    plans = Plans(plans={"b": a_plan()}, excluded={"a": "too small"})

    planned, excluded = plan_rows(plans)

    assert planned[:-2] == ("b", ("because",), "4", "8", "4/6", "8–16", "2", "9", "3.00 GiB", "1 min 15 s", "2.00 KiB", "Time")
    assert excluded == PlanRow("a", ("too small",))


def test_a_row_shows_the_passes_of_a_step_and_marks_what_is_recomputed_or_cached() -> None:
    assert the_row(a_plan(micro_batch_size=2)).batch == "4 × 2"
    assert the_row(a_plan(micro_batch_size=3)).batch == "3 × 3"
    assert the_row(a_plan(micro_batch_size=2, gradient_checkpointing=True)).batch == "4 × 2*"
    assert the_row(a_plan(gradient_checkpointing=True, cache_activations=True)).batch == "8*†"


def test_a_row_says_what_is_predicted_and_which_weight_has_which_rank() -> None:
    row = the_row(a_plan())

    assert row.forecast == "predicted: 3.00 GiB of memory; 1 min 15 s a round, 1 min of them for 9 steps; 2.00 KiB up, 4.00 KiB down"
    assert row.ranks == ("q: rank 8", "k: no adapter", "v: rank 16")


def test_a_forecast_in_the_status_fits_whatever_the_numbers() -> None:
    enormous = Forecast(memory_bytes=10**100, seconds=1e200, step_seconds=1e200, upload_bytes=10**100, download_bytes=10**100)

    assert len(plan_status("b", a_plan(forecast=enormous)).forecast) == 256


def test_a_status_is_bounded_and_rounded() -> None:
    status = plan_status("b", a_plan(("x" * 2000,) * 20, micro_batch_size=4, cache_activations=True), ["q: rank 8"])

    assert status == PlanStatus(
        site="b",
        bits=4,
        batch_size=8,
        micro_batch_size=4,
        steps=9,
        rank=16,
        adapters=2,
        layers=4,
        model_layers=6,
        cache_activations=True,
        forecast="3.00 GiB of memory; 1 min 15 s a round, 1 min of them for 9 steps; 2.00 KiB up, 4.00 KiB down",
        memory=3 * GIB,
        seconds=75.0,
        step_seconds=60.0,
        upload=2048,
        download=4096,
        ranks=("q: rank 8",),
        limited_by="Time",
        why=("x" * 1024,) * 12,
    )

"""The forecasts of whole plans, held to what training tasks of MiniLM on a CPU needed: benchmarks/forecasts, with its measurements."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from site_profiles import a_spec

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.planning.choices import Choice
from fedpipe_operator.planning.forecast import forecast
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.sizes import head_shapes
from fedpipe_operator.sites import site_profile
from fedpipe_trainer.contract import Forecast, ProfileResult

RESULTS = Path(__file__).parents[2] / "benchmarks" / "forecasts" / "results"
SITE = EdgeSite.model_validate(
    {
        "metadata": {"name": "site"},
        "spec": {
            "data": {"train": "train.jsonl", "validation": "validation.jsonl", "volume": {"persistentVolumeClaim": {"claimName": "data"}}},
            "capacity": {"bandwidth": {"up": "100G", "down": "100G"}},
        },
    }
)
SPEC = a_spec(
    task={"type": "SequenceClassification", "text": "text", "label": "label", "maxLength": 64},
    planning={"ranks": [0, 4, 8, 16, 32], "batchSizes": [1, 2, 4, 8, 16]},
    evaluation={"maxSamples": 100},
)


class Row(NamedTuple):
    """A forecast and what was measured."""

    predicted: Forecast
    measured: dict[str, Any]


def rows() -> list[Row]:
    measurements = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")) if not path.name.startswith("profile")]
    return [Row(forecast_of(one), one) for one in measurements if one["configuration"]["work"] == "minilm"]


def forecast_of(measured: dict[str, Any]) -> Forecast:
    """The forecast of a measured plan, from the profile of its bit width."""
    plan = measured["configuration"]
    profile = json.loads((RESULTS / f"profile-minilm-{plan['clock']}-{plan['bits']}-bits.json").read_text())
    site = site_profile(SITE, ProfileResult.model_validate(profile["result"]))
    lowest = site.base.layers - plan["layers"]
    request = PlanRequest(spec=SPEC, head=head_shapes(site.base, len(site.labels)))
    choice = Choice(plan["bits"], 16, plan["micro_batch"], plan["checkpointing"], lowest, cached=False)
    ranks = {weight.name: plan["rank"] for weight in site.base.weights if weight.layer >= lowest}
    return forecast(request, site, choice, ranks=ranks, steps=measured["steps"])


@pytest.fixture(scope="module")
def measured_rows() -> list[Row]:
    return rows()


def within(share: float, errors: list[float]) -> int:
    """How many errors are at most this large."""
    return sum(abs(error) <= share for error in errors)


def test_memory_is_forecast_within_10_percent_in_40_of_44_configurations_and_never_15_percent_off(measured_rows: list[Row]) -> None:
    errors = [row.predicted.memory_bytes / row.measured["peak_memory_bytes"] - 1 for row in measured_rows]

    assert len(errors) == 44
    assert within(0.10, errors) >= 40, errors
    assert within(0.15, errors) == 44, errors


def test_the_seconds_of_every_task_are_forecast_within_15_percent_and_those_of_its_steps_within_20(measured_rows: list[Row]) -> None:
    tasks = [row.predicted.seconds / sum(row.measured["seconds"].values()) - 1 for row in measured_rows]
    steps = [row.predicted.step_seconds / row.measured["seconds"]["train"] - 1 for row in measured_rows]

    assert within(0.15, tasks) == 44, tasks
    assert within(0.15, steps) >= 40, steps
    assert within(0.20, steps) == 44, steps


def test_the_bytes_of_an_update_and_of_the_global_adapter_are_exact(measured_rows: list[Row]) -> None:
    assert [row.predicted.upload_bytes for row in measured_rows] == [row.measured["adapter_bytes"] for row in measured_rows]
    assert [row.predicted.download_bytes for row in measured_rows] == [row.measured["downloaded_bytes"] for row in measured_rows]

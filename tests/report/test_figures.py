import json
import math
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from fedpipe_operator.report import RunRecord
from fedpipe_operator.report.figures import downsample, metric_figure, training_loss_figure, truncated_energy_figure
from fedpipe_operator.report.forecasts import QUANTITIES, forecast_figure, forecast_rows
from fedpipe_operator.report.page import figures
from fedpipe_operator.report.palette import rank_colours
from fedpipe_operator.report.plan_map import plan_map, weight_map

QUANTITY = {quantity.title: quantity for quantity in QUANTITIES}


def traces(figure: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    assert figure is not None
    return {trace["name"]: trace for trace in figure["data"]}


def test_plotly_accepts_every_figure(record: RunRecord) -> None:
    drawn = figures(record)
    assert set(drawn) == {"metric", "loss", "training", "energy", "importance", "plan", "learned", "timeline", "forecast"}
    for figure in drawn.values():
        assert len(go.Figure(figure).data) == len(figure["data"])


def test_the_metric_curve_has_every_round_from_the_base_on_in_percent(record: RunRecord) -> None:
    lines = traces(metric_figure(record, "accuracy"))
    assert lines["federated"]["x"] == [0, 1, 2, 3, 4, 5, 6]
    assert lines["federated"]["y"] == [100 * record.evaluations[round_].metrics["accuracy"] for round_ in range(7)]
    assert lines["clinic-north"]["y"] == [100 * record.evaluations[round_].sites["clinic-north"].metrics["accuracy"] for round_ in range(7)]
    assert "kiosk-west" not in lines


def test_the_best_local_only_baseline_is_a_horizontal_line_when_the_run_was_compared(record: RunRecord) -> None:
    assert record.comparison is not None
    figure = metric_figure(record, "accuracy")
    assert figure is not None
    assert figure["layout"]["shapes"][0]["y0"] == 100 * record.comparison.local_only["clinic-north"].metrics["accuracy"]
    not_compared = metric_figure(replace(record, comparison=None), "accuracy")
    assert not_compared is not None
    assert not_compared["layout"]["shapes"] == []


def test_the_loss_curve_is_the_loss_itself(record: RunRecord) -> None:
    assert traces(metric_figure(record, "loss"))["federated"]["y"] == [record.evaluations[round_].loss for round_ in range(7)]


def test_a_site_that_missed_a_round_has_no_point_there(record: RunRecord) -> None:
    second = record.evaluations[2]
    without = second.model_copy(update={"sites": {site: part for site, part in second.sites.items() if site != "clinic-north"}})
    lines = traces(metric_figure(replace(record, evaluations=record.evaluations | {2: without}), "accuracy"))
    assert lines["clinic-north"]["x"] == [0, 1, 3, 4, 5, 6]


def test_a_metric_that_was_not_measured_has_no_figure(record: RunRecord) -> None:
    assert metric_figure(record, "bleu") is None


def test_the_training_loss_runs_over_the_steps_of_all_rounds(record: RunRecord) -> None:
    line = traces(training_loss_figure(record))["clinic-north"]
    losses = [loss for round_ in range(1, 7) for loss in record.updates[round_]["clinic-north"].losses]
    assert line["y"][0] == pytest.approx(sum(losses[:2]) / 2)
    assert line["x"][0] == 1.5
    assert line["x"][-1] == 239.5


def test_downsampling_keeps_short_curves_and_averages_long_ones() -> None:
    assert downsample([3.0, 1.0], limit=2) == ([1.0, 2.0], [3.0, 1.0])
    assert downsample([1.0, 3.0, 5.0], limit=2) == ([1.5, 3.0], [2.0, 5.0])
    assert downsample([]) == ([], [])


def test_the_energy_curve_is_the_largest_and_the_mean_of_the_weights_in_percent(record: RunRecord) -> None:
    lines = traces(truncated_energy_figure(record))
    fractions = list(record.rounds[4].truncated_energy.values())
    assert lines["largest of any weight"]["y"][3] == pytest.approx(100 * max(fractions))
    assert lines["mean over the weights"]["y"][3] == pytest.approx(100 * sum(fractions) / len(fractions))


def test_the_heat_map_shows_exactly_the_plans_ranks(record: RunRecord) -> None:
    for site, band in traces(plan_map(record)).items():
        shown = {
            weight: rank
            for names, ranks in zip(band["customdata"], band["z"], strict=True)
            for weight, rank in zip(names, ranks, strict=True)
        }
        assert shown == record.plans[6].plans[site].ranks
        assert band["x"] == [str(layer) for layer in range(12)]
        assert band["y"] == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_the_heat_maps_titles_and_hovers_name_the_bits(record: RunRecord) -> None:
    figure = plan_map(record)
    assert figure is not None
    titles = [note["text"].split("  ")[1] for note in figure["layout"]["annotations"]]
    assert [title.split(",")[0] for title in titles] == ["16-bit base", "8-bit base", "4-bit base"]
    assert "4-bit base" in traces(figure)["practice-south"]["hovertemplate"]


def test_each_rank_in_use_has_its_own_colour_on_the_scale(record: RunRecord) -> None:
    band = traces(plan_map(record))["clinic-north"]
    assert dict(map(tuple, band["colorscale"])) == {rank / 32: colour for rank, colour in rank_colours({0, 4, 8, 16, 32}).items()}
    assert len(set(rank_colours({0, 4, 8, 16, 32}).values())) == 5


def test_a_plan_with_a_single_rank_still_has_a_scale_from_0_to_1(record: RunRecord) -> None:
    newest = record.plans[6]
    plans = {site: plan.model_copy(update={"ranks": dict.fromkeys(plan.ranks, 8)}) for site, plan in newest.plans.items()}
    band = traces(plan_map(replace(record, plans={6: newest.model_copy(update={"plans": plans})})))["clinic-north"]
    assert [stop for stop, _ in band["colorscale"]] == [0.0, 1.0]


def test_a_layer_without_some_weight_is_a_gap(record: RunRecord) -> None:
    newest = record.plans[6]
    ranks = {"h.0.q": 4, "h.0.v": 8, "h.1.q": 4}
    plans = {"clinic-north": newest.plans["clinic-north"].model_copy(update={"ranks": ranks})}
    band = traces(plan_map(replace(record, plans={6: newest.model_copy(update={"plans": plans})})))["clinic-north"]
    assert band["z"] == [[4, 4], [8, None]]


def test_the_layers_below_the_lowest_trained_one_are_shaded(record: RunRecord) -> None:
    figure = plan_map(record)
    assert figure is not None
    [box] = figure["layout"]["shapes"]
    assert (box["yref"], box["x0"], box["x1"]) == ("y3 domain", -0.5, 3.5), "practice-south is the third band; layers 0 to 3"
    assert box["label"]["text"] == "not trained"
    titles = {note["text"].split("  ")[0]: note["text"] for note in figure["layout"]["annotations"]}
    assert titles["<b>practice-south</b>"].endswith(", trained from layer 4 up")
    assert "trained from" not in titles["<b>clinic-north</b>"]


def test_a_map_of_a_quantity_has_every_weight_in_percent_of_the_mean() -> None:
    [trace] = traces(weight_map("importance", {"h.0.q": 1.0, "h.0.v": 4.0, "h.1.q": 1.0})).values()
    assert trace["y"] == ["q", "v"]
    assert trace["z"] == [[50.0, 50.0], [200.0, None]]
    assert trace["customdata"] == [["h.0.q", "h.1.q"], ["h.0.v", ""]]


def test_values_that_are_all_zero_are_drawn_as_they_are() -> None:
    [trace] = traces(weight_map("importance", {"h.0.q": 0.0, "h.0.v": 0.0})).values()
    assert trace["z"] == [[0.0], [0.0]]


def test_ratios_are_measured_over_predicted(record: RunRecord) -> None:
    ratios = {title: [row.ratio for row in forecast_rows(record, quantity)] for title, quantity in QUANTITY.items()}
    assert ratios["peak memory"] == pytest.approx([1.06] * 3), "the largest peak, of round 6"
    assert ratios["time per round"] == pytest.approx([0.9] * 3)
    assert ratios["sent per round"] == [1.0] * 3
    assert ratios["received per round"] == [2.0] * 3


def test_the_forecast_figure_has_measured_bars_predicted_marks_and_the_ratio(record: RunRecord) -> None:
    figure = forecast_figure(record)
    assert figure is not None
    bars, marks, labels = figure["data"][:3]
    row = forecast_rows(record, QUANTITY["peak memory"])[0]
    assert bars["x"][0] == pytest.approx((row.measured or math.nan) / 1024**2)
    assert marks["x"][0] == pytest.approx(row.predicted / 1024**2)
    assert "×1.06" in labels["text"][0]
    assert labels["x"][0] == max(bars["x"][0], marks["x"][0])
    assert "MiB" in figure["layout"]["annotations"][0]["text"]


def test_a_site_without_an_update_has_its_prediction_only(record: RunRecord) -> None:
    row = forecast_rows(replace(record, updates={}), QUANTITY["peak memory"])[0]
    assert (row.measured, row.ratio) == (None, None)
    assert row.predicted == record.plans[6].plans["clinic-north"].forecast.memory_bytes


def test_a_site_that_was_never_selected_is_not_compared(record: RunRecord) -> None:
    plans = {round_: plan.model_copy(update={"selected": ("clinic-north",)}) for round_, plan in record.plans.items()}
    assert [row.site for row in forecast_rows(replace(record, plans=plans), QUANTITY["peak memory"])] == ["clinic-north"]


def test_non_finite_numbers_are_gaps(record: RunRecord) -> None:
    diverged = record.updates[1]["clinic-north"].model_copy(update={"losses": (1.0, math.nan, math.inf)})
    drawn = figures(replace(record, updates={1: {"clinic-north": diverged}}))
    assert traces(drawn["training"])["clinic-north"]["y"] == [1.0, None, None]
    json.dumps(drawn, allow_nan=False)


def test_an_empty_record_has_no_figures(bare_record: RunRecord) -> None:
    assert figures(bare_record) == {}


def test_the_text_of_a_learned_weight_names_the_sites_that_moved_it(record: RunRecord) -> None:
    weight = "model.layers.2.self_attn.v_proj"
    commit = record.rounds[1].model_copy(update={"learned_by": {weight: {"clinic<b>": 0.75, "ward": 0.25}}})

    trace = figures(replace(record, rounds={1: commit}))["learned"]["data"][0]

    assert trace["customdata"][2][2] == f"{weight}<br>clinic&lt;b&gt; 75.0 %, ward 25.0 %"
    assert trace["customdata"][0][2] == "model.layers.2.self_attn.q_proj"

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fedpipe_operator.planning import Hyperparameter
from fedpipe_operator.report import RunRecord, write_report
from fedpipe_operator.rounds.records import LossEstimate
from fedpipe_trainer.contract import EnergySource, Measured, Sample

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>"
LOADING = {"src", "href", "data", "action", "poster", "srcset", "background"}
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The parsed page: tags with their attributes, visible text, scripts, and the tags that are still open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside != "style":
            (self.scripts if inside == "script" else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def ids(self) -> set[str | None]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}


@pytest.fixture
def page(record: RunRecord) -> Page:
    return Page(write_report(record))


def test_every_tag_of_the_page_is_closed(page: Page) -> None:
    assert page.open == []


def test_the_page_loads_no_external_resource(page: Page) -> None:
    loading = [(tag, name) for tag, attributes in page.tags for name in attributes if name in LOADING]
    assert loading == []
    assert not {"link", "iframe", "img", "object", "embed"} & {tag for tag, _ in page.tags}


def test_the_policy_allows_the_pages_own_scripts_and_nothing_else(page: Page) -> None:
    policy = next(attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "unsafe" not in policy.split(";")[1]


def test_plotly_is_inlined_once_before_the_script_that_uses_it(page: Page) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert sum("Copyright" in script and "Plotly" in script for script in page.scripts) == 1
    assert "Plotly.react" in page.scripts[-1]


def test_a_full_record_has_every_section_and_every_figure(page: Page) -> None:
    assert {"comparison", "curves", "plan", "why", "timeline", "contributions", "forecast", "rounds", "left-out", "samples"} <= page.ids
    assert {f"figure-{name}" for name in json.loads(page.scripts[0])} <= page.ids


def test_title_outcome_and_result_are_at_the_top(page: Page) -> None:
    assert re.search(
        r"newsgroups Complete SmolLM2-135M@93efa2f, SequenceClassification, .* The federated model has accuracy 76.3 %", page.text
    )


def test_the_comparison_marks_the_best(page: Page) -> None:
    assert "federated best 5 547 76.3 % 75.0 %" in page.text
    assert sum(attributes.get("class") == "tag" for _, attributes in page.tags) == 1


def test_the_reasons_of_the_plan_and_of_absent_sites_are_shown(page: Page, record: RunRecord) -> None:
    for plan in record.plans[6].plans.values():
        assert all(sentence in page.text for sentence in plan.why)
    assert "the least is 391 MiB" in page.text
    assert "refused, NotFinite: lora_B has NaN." in page.text


def test_each_plan_says_what_it_is_predicted_to_need_and_which_weight_has_which_rank(page: Page) -> None:
    assert "predicted: 208 MiB of memory; 30 s a round, 0.0 s of them for 40 steps; 1.00 MiB up, 4.00 MiB down" in page.text
    assert "q_proj, v_proj: rank 8 in layers 4–11 k_proj, o_proj: rank 4 in layers 4–11" in page.text


def test_what_was_measured_at_each_site_is_shown(record: RunRecord) -> None:
    site = record.sites[0]
    profile = record.profiles[site].model_copy(update={"up_bits_per_second": 9.42e7, "mfu": 0.412, "memory_bytes_per_second": 2.0**34})

    page = Page(write_report(replace(record, profiles={site: profile})))

    assert f"{site} 94.2 Mbit/s – 16.0 GiB 41.2 % – – –" in page.text


def test_how_well_the_trainings_of_each_site_used_it_is_shown(record: RunRecord) -> None:
    site = record.sites[0]
    used = Measured(seconds={"train": 60.0, "transfer": 2.0}, uploaded_bytes=2**20, downloaded_bytes=2**20)
    changes = {"measured": used, "tokens_per_second": 21412.4, "mfu": 0.25, "tokens": 3, "padded_tokens": 1, "energy_joules": 0.5}
    update = record.updates[1][site].model_copy(update=changes | {"energy_source": EnergySource.NVML})

    page = Page(write_report(replace(record, updates={1: {site: update}})))

    assert f"{site} 1 21 412 28 550 25.0 % 6 (NVML) 30 1.00 MiB 1.00 MiB 8.39 Mbit/s" in page.text


def test_every_hyperparameter_is_shown_with_its_reason(page: Page) -> None:
    assert "training.learningRate 0.003 It has the lowest loss of 5 rates." in page.text


def test_what_is_odd_about_the_labels_is_told_with_the_plan(record: RunRecord) -> None:
    newest = max(record.plans)
    note = "2 labels that one site alone has: 2 at clinic-north"
    plans = {**record.plans, newest: record.plans[newest].model_copy(update={"label_notes": (note,)})}

    assert f"{note}." in Page(write_report(replace(record, plans=plans))).text


def test_importance_idle_share_and_contributions_are_told_in_words_and_numbers(page: Page) -> None:
    assert "the two halves of their data agree (rank correlation 0.91)" in page.text
    assert re.search(r"The sites waited for the slowest one in \d+\.\d % of their time over all rounds", page.text)
    assert "practice-south 5 200 11.8 % 0.5 – – – –" in page.text


def test_what_each_site_did_to_the_loss_is_labelled_as_an_estimate(record: RunRecord) -> None:
    loss = record.evaluations[6].loss or 0.0
    estimated = {"practice-south": LossEstimate(change=-0.0321, loss_without=loss + 0.0321)}
    last = record.evaluations[6].model_copy(update={"first_order_estimates": estimated})

    page = Page(write_report(replace(record, evaluations=record.evaluations | {6: last})))

    assert "The last two columns are first-order estimates" in page.text
    assert f"practice-south 5 200 11.8 % 0.5 – – −0.032 {loss + 0.0321:.3f} instead of {loss:.3f}" in page.text


def test_what_the_estimates_of_the_loss_do_not_show_is_told_beside_them(record: RunRecord) -> None:
    plan, head = record.plans[6], {"classifier.weight": (20, 768)}
    with_head = replace(record, plans={6: plan.model_copy(update={"head": head})})
    without_head = replace(record, plans={6: plan.model_copy(update={"head": {}})})

    pages = Page(write_report(with_head)).text, Page(write_report(without_head)).text

    assert all("a site that alone holds rare data (its alignment is low) may be worth more than they say" in text for text in pages)
    assert ["who trained the head" in text for text in pages] == [True, False]


def test_a_run_that_was_just_applied_has_a_page_without_empty_sections(bare_record: RunRecord) -> None:
    page = Page(write_report(bare_record))
    assert page.ids == {"figures"}
    assert "No round has been evaluated yet." in page.text
    assert "0 of 6" in page.text


@pytest.mark.parametrize(
    ("absent", "section"),
    [
        ({"comparison": None}, "comparison"),
        ({"evaluations": {}, "updates": {}}, "curves"),
        ({"plans": {}, "profiles": {}}, "plan"),
        ({"plans": {}}, "forecast"),
        ({"rounds": {}}, "rounds"),
        ({"updates": {}}, "timeline"),
        ({"site_evaluations": {}}, "samples"),
    ],
)
def test_a_section_without_data_is_left_out_and_the_rest_stays(record: RunRecord, absent: dict[str, object], section: str) -> None:
    page = Page(write_report(replace(record, **absent)))  # type: ignore[arg-type]  # names of fields, checked by replace itself
    assert section not in page.ids
    assert {"comparison", "rounds", "left-out"} - {section} <= page.ids


def test_unreadable_objects_are_listed(record: RunRecord) -> None:
    page = Page(write_report(replace(record, unreadable={"profile/a/0/result.json": "not a ProfileResult"})))
    assert "profile/a/0/result.json this report not a ProfileResult" in page.text


def hostile(record: RunRecord) -> RunRecord:
    """The record with markup in every text that a site can set: name, label, document, message, weight, device, reason."""
    plan = record.plans[6]
    evil_plan = plan.plans["clinic-north"].model_copy(update={"why": (HOSTILE,), "ranks": {f"h.0.{HOSTILE}": 4}})
    evil = plan.model_copy(
        update={
            "plans": {HOSTILE: evil_plan},
            "selected": (HOSTILE,),
            "excluded": {"kiosk-west": HOSTILE},
            "importance": {f"h.0.{HOSTILE}": 1.0},
            "importance_note": HOSTILE,
            "label_notes": (HOSTILE,),
            "hyperparameters": (Hyperparameter(name="training.learningRate", value="0.003", reason=HOSTILE),),
        }
    )
    evaluation = record.site_evaluations[6]["clinic-north"]
    samples = (Sample(text=HOSTILE, expected=HOSTILE, predicted=HOSTILE),)
    profile = record.profiles["clinic-north"]
    device = profile.measured.model_copy(update={"device": HOSTILE})
    commit = record.rounds[6]
    rounds = {6: commit.model_copy(update={"contributions": (commit.contributions[0].model_copy(update={"site": HOSTILE}),)})}
    curves = {6: record.evaluations[6].model_copy(update={"sites": {HOSTILE: record.evaluations[6].sites["clinic-north"]}})}
    return replace(
        record,
        plans={6: evil},
        updates={6: {HOSTILE: record.updates[6]["clinic-north"]}},
        rounds=rounds,
        evaluations=curves,
        site_evaluations={6: {HOSTILE: evaluation.model_copy(update={"examples": samples})}},
        profiles={HOSTILE: profile.model_copy(update={"measured": device, "software": {HOSTILE: HOSTILE}})},
        comparison=record.comparison and record.comparison.model_copy(update={"local_only": {HOSTILE: record.comparison.base}}),
        unreadable={HOSTILE: HOSTILE},
    )


def test_markup_from_a_site_is_text_everywhere_on_the_page(record: RunRecord) -> None:
    page = Page(write_report(hostile(record)))
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert not {"img"} & {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert('x')</script>") >= 13


def test_markup_from_a_site_is_text_in_the_figures_too(record: RunRecord) -> None:
    page = Page(write_report(hostile(record)))
    data = page.scripts[0]
    assert "<" not in data
    assert "<script" not in json.dumps(json.loads(data))
    assert "&lt;script&gt;" in json.dumps(json.loads(data))

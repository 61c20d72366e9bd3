"""The health checks for Argo CD on docs/health.md, run as Argo CD does (Lua 5.1), on the status of a run and a site in every situation."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from crds import default_status
from health import kstatus
from lupa import lua51
from run_situations import RUNNING, SITUATIONS, body_of, status_after

from fedpipe_operator import logs
from fedpipe_operator.api import ProgressStatus, Stage

PAGE = Path(__file__).parents[2] / "docs" / "health.md"
TEXT = PAGE.read_text()
RUN, SITE = "fedpipe.io_FederatedFineTune", "fedpipe.io_EdgeSite"
CONCLUSIONS = {"Current": {"Healthy"}, "InProgress": {"Progressing", "Suspended"}, "Failed": {"Degraded"}}
"""What Argo CD may conclude where kstatus concludes this."""


def health(kind: str, body: dict[str, Any]) -> tuple[str, str]:
    """Status and message, by the script of the page."""
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    lua.globals().obj = lua.table_from(body, recursive=True)
    found = lua.execute(yaml.safe_load(block)["data"][f"resource.customizations.health.{kind}"])
    return found.status, found.message


@pytest.mark.parametrize("situation", SITUATIONS)
def test_argo_cd_and_kstatus_conclude_the_same_of_a_run(situation: str) -> None:
    status, expected, concluded = SITUATIONS[situation]
    body = body_of(status)

    found, message = health(RUN, body)

    assert kstatus(body) == concluded
    assert found in CONCLUSIONS[concluded]
    assert (found == "Suspended") == expected.get("Suspended", "").startswith("True")
    assert message


@pytest.mark.parametrize(("kind", "script"), [("FederatedFineTune", RUN), ("EdgeSite", SITE)])
@pytest.mark.parametrize("status", [None, {}, "default"], ids=["no status", "an empty status", "the default status"])
def test_an_object_that_the_operator_has_not_observed_is_progressing(kind: str, script: str, status: Any) -> None:
    body = {"metadata": {"generation": 1}} | ({} if status is None else {"status": default_status(kind) if status else {}})

    assert health(script, body) == ("Progressing", "the operator has not observed this generation yet")


def test_an_edit_that_the_operator_has_not_observed_is_progressing() -> None:
    status, _, _ = SITUATIONS["complete"]

    assert health(RUN, body_of(status, generation=2))[0] == "Progressing"


def test_the_message_of_a_run_under_way_has_its_percentage() -> None:
    progress = ProgressStatus(stage=Stage.TRAINING, percentage=42, sites_done=1, sites_total=3)
    status = status_after(RUNNING).model_copy(update={"progress": progress})

    assert health(RUN, body_of(status)) == ("Progressing", "42 %, Training: 1 of 3 sites done")


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        ({"status": "True", "reason": "NodesFound"}, ("Healthy", "NodesFound: ")),
        ({"status": "False", "reason": "NoNode", "message": "no node has the labels"}, ("Degraded", "NoNode: no node has the labels")),
        ({"status": "Unknown", "reason": "Pending"}, ("Progressing", "the operator has not determined the conditions yet")),
    ],
    ids=["ready", "not ready", "unknown"],
)
def test_the_health_of_a_site_is_that_of_its_condition_ready(ready: dict[str, str], expected: tuple[str, str]) -> None:
    body = {
        "metadata": {"generation": 1},
        "status": {"observedGeneration": 1, "conditions": [{"type": "Valid", "status": "True"}, {"type": "Ready"} | ready]},
    }

    assert health(SITE, body) == expected


def test_the_page_names_every_stage_and_every_field_of_a_line_of_the_log() -> None:
    progress, log = TEXT.partition("## Conditions")[0], TEXT.partition("## The log")[2]

    assert [stage for stage in Stage if f"`{stage.value}`" not in progress] == []
    assert [field for field in logs.FIELDS if f"`{field}`" not in log] == []

"""An editor of the namespace, who may create runs and read nearly everything, cannot read what a site's policy does not show.

The sites' texts, their labels beside the allowed ones and their other columns are canaries. Searched is everything that the editor can list
in the namespace, the log of every pod, and every object in the store, whose key pair an editor can read, too.
"""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from cluster_user import Kubectl, KubectlError, Plain, condition, role_binding
from fleet_namespace import FleetNamespace, is_finished
from installed_operator import Operator
from local_runs import SEEN, WORDS

pytestmark = pytest.mark.e2e

CANARY: Final = "c4n4ry"
LABELS: Final = sorted(WORDS)
ROWS: Final = 24
POLICY: Final = {"labels": LABELS, "columns": ["text", "label"], "minSites": 2}
CURIOUS: Final[dict[str, Plain]] = {
    "honest": {},
    "texts-as-labels": {"task": {"type": "SequenceClassification", "maxLength": 32, "label": "text"}},
    "another-column": {"task": {"type": "SequenceClassification", "maxLength": 32, "text": f"{CANARY}_column"}},
    "one-site": {"sites": {"selector": {"matchLabels": {"alone": "yes"}}}},
}
"""What a curious author writes into a run's spec."""


def write_rows(file: Path, site: str, count: int) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"{CANARY} {site} {at}", "label": SEEN[site][at % 2], f"{CANARY}_column": CANARY} for at in range(count)
    ]
    rows.append({"text": CANARY, "label": f"{CANARY}-label", f"{CANARY}_column": CANARY})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def canaries(
    disposable_cluster: None, operator: Operator, fleet: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FleetNamespace]:
    """A namespace whose sites have canaries, and in which all the curious runs have ended."""
    del disposable_cluster
    folder = tmp_path_factory.mktemp("canaries") / "fleet"
    shutil.copytree(fleet, folder)
    for site in SEEN:
        write_rows(folder / "volumes" / f"{site}-data" / "train.jsonl", site, ROWS)
        write_rows(folder / "volumes" / f"{site}-data" / "validation.jsonl", site, 6)
    open_to_the_nodes(folder)
    with FleetNamespace(Kubectl("e2e-canaries"), operator, folder).opened() as namespace:
        namespace.kubectl.apply(role_binding("edit"), *(a_site(namespace, site) for site in SEEN))
        editor = Kubectl(namespace.name, "a-edit")
        editor.apply(*(a_run(namespace, name) for name in CURIOUS))
        for name in CURIOUS:
            namespace.wait(f"{name} has ended", lambda name=name: has_ended_or_waits(namespace, name))
        yield namespace


def open_to_the_nodes(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def a_site(namespace: FleetNamespace, name: str) -> Plain:
    site = namespace.site(name, policy=POLICY, maxConcurrentJobs=2)
    if name == "north":
        site["metadata"]["labels"]["alone"] = "yes"
    return site


def a_run(namespace: FleetNamespace, name: str) -> Plain:
    return namespace.run(name, rounds={"count": 1}, evaluation={"samples": 20}, **CURIOUS[name])


def has_ended_or_waits(namespace: FleetNamespace, name: str) -> bool:
    """Whether the run is finished, or says that too few sites can take part."""
    run = namespace.get_run(name)
    return is_finished(run) or condition(run, "Progressing").get("reason") == "TooFewSites"


def listed(editor: Kubectl) -> dict[str, str]:
    """By kind of object: all that the editor may list, with the Secrets' values decoded."""
    kinds = editor("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    allowed = [kind for kind in kinds if may_list(editor, kind)]
    found = {kind: editor.list(kind) for kind in allowed}
    values = [value for secret in found["secrets"] for value in secret.get("data", {}).values()]
    decoded = [base64.b64decode(value).decode(errors="replace") for value in values]
    return {kind: json.dumps(items) for kind, items in found.items()} | {"decoded secrets": "\n".join(decoded)}


def may_list(editor: Kubectl, kind: str) -> bool:
    try:
        return editor("auth", "can-i", "list", kind).strip() == "yes"
    except KubectlError:  # the answer no is its exit status 1
        return False


def test_an_editor_lists_objects_of_every_kind_and_none_has_a_canary(canaries: FleetNamespace) -> None:
    found = listed(Kubectl(canaries.name, "a-edit"))

    assert {"secrets", "events", "pods", "jobs.batch", "federatedfinetunes.fedpipe.io", "edgesites.fedpipe.io"} <= found.keys()
    assert [kind for kind, text in found.items() if CANARY in without_the_spec_of_a_run(text)] == []


def without_the_spec_of_a_run(text: str) -> str:
    """The author wrote the name of the column there."""
    return text.replace(f"{CANARY}_column", "")


def test_no_log_has_a_canary(canaries: FleetNamespace) -> None:
    editor = Kubectl(canaries.name, "a-edit")
    logs = {pod["metadata"]["name"]: editor("logs", pod["metadata"]["name"], "--all-containers") for pod in editor.list("pods")}

    assert len(logs) >= len(SEEN)
    assert [pod for pod, log in logs.items() if CANARY in without_the_spec_of_a_run(log)] == []
    assert CANARY not in without_the_spec_of_a_run(canaries.operator.log())


def test_no_object_in_the_store_has_a_canary(canaries: FleetNamespace) -> None:
    for name in CURIOUS:
        store = canaries.store_of(canaries.get_run(name))
        for key in store.list():
            content = store.read(key) or b""
            assert CANARY not in without_the_spec_of_a_run(content.decode(errors="replace")), f"{name}: {key}"


def test_the_run_that_asks_for_nothing_forbidden_is_complete(canaries: FleetNamespace) -> None:
    assert condition(canaries.get_run("honest"), "Complete").get("status") == "True"


@pytest.mark.parametrize("name", [name for name in CURIOUS if name != "honest"])
def test_a_run_that_asks_for_more_trains_nowhere(canaries: FleetNamespace, name: str) -> None:
    run = canaries.get_run(name)

    assert run["status"].get("history", []) == []
    assert condition(run, "Complete").get("status") != "True"

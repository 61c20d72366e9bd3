"""The operator's role allows exactly the API calls of its code and the watches of kopf: no verb and no resource more or less."""

import ast
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from charts import granted, rules
from stand_in_runs import a_run

from fedpipe_operator import cluster
from fedpipe_operator.backend import Job, TaskKind
from fedpipe_operator.cluster.api import Api, Kind
from fedpipe_operator.manifests import task_secret

Right = tuple[str, str, str]
"""Group, resource, verb."""

METHODS = ("serves", "get", "find", "names", "log", "log_since", "create", "merge", "replace_status", "delete", "delete_all")

_ARGUMENTS: dict[str, Any] = {
    "namespace": "somewhere",
    "name": "something",
    "body": {"metadata": {"name": "something"}},
    "status": {},
    "labels": {"of": "it"},
    "uid": "1",
}

_WATCHES = """
import json, kopf
from fedpipe_operator.handlers import watches
from fedpipe_operator.handlers import nodes
registry = kopf.get_default_registry()
watching = [registry._indexing, registry._watching]
acting = [registry._changing, registry._spawning, registry._webhooks]
names = lambda kinds: sorted({(selector.group, selector.any_name) for kind in kinds for selector in kind.get_all_selectors()})
print(json.dumps({"watching": names(watching), "acting": names(acting)}))
"""


def test_the_operators_rules_are_what_its_code_needs() -> None:
    watched = {(group, plural, verb) for group, plural in _watched()["watching"] for verb in ("list", "watch")}
    of_nodes, of_leases = ({right for right in _called() | watched if right[1] == resource} for resource in ("nodes", "leases"))
    of_reviews = {right for right in _called() if right[1].endswith("reviews")}

    assert granted(rules("operator")) == (_called() | watched | _owner_rights()) - of_nodes - of_leases - of_reviews
    assert granted(rules("nodes")) == of_nodes
    assert granted(rules("lease")) == of_leases
    assert granted(rules("reviews")) == of_reviews


def test_the_operator_reads_and_changes_no_lease_but_the_release_s_own() -> None:
    """A right to create cannot name its object, since that does not exist yet."""
    by_verbs = {tuple(rule["verbs"]): rule.get("resourceNames") for rule in rules("lease")}

    assert by_verbs == {("create",): None, ("get", "patch"): ["RELEASE"]}


def test_nodes_are_listed_and_watched_and_nothing_more() -> None:
    assert granted(rules("nodes")) == {("", "nodes", "list"), ("", "nodes", "watch")}
    assert ["", "nodes"] in _watched()["watching"]


def test_reviews_of_callers_are_asked_for_and_nothing_more() -> None:
    assert granted(rules("reviews")) == {
        ("authentication.k8s.io", "tokenreviews", "create"),
        ("authorization.k8s.io", "subjectaccessreviews", "create"),
    }


def test_kopf_only_watches_and_writes_nothing() -> None:
    """With state-keeping handlers or admission webhooks, kopf would patch the watched objects and others."""
    assert _watched()["acting"] == []


def test_every_method_of_the_api_is_listed_here() -> None:
    public = {name for name, _ in inspect.getmembers(Api, inspect.isfunction) if not name.startswith("_")}

    assert public == set(METHODS)


@pytest.mark.parametrize("kind", ["federatedfinetunes", "edgesites"])
def test_users_may_read_a_status_and_not_write_it(kind: str) -> None:
    for role, its_rules in rules("users").items():
        verbs = {verb for group, resource, verb in granted(its_rules) if (group, resource) == ("fedpipe.io", f"{kind}/status")}

        assert verbs == {"get"}, role


def test_a_viewer_only_reads_an_editor_creates_runs_and_an_admin_creates_sites_too() -> None:
    writes = {
        role: {resource for _, resource, verb in granted(its_rules) if verb not in ("get", "list", "watch")}
        for role, its_rules in rules("users").items()
    }

    assert writes == {"view": set(), "edit": {"federatedfinetunes"}, "admin": {"federatedfinetunes", "edgesites", "edgesites/policy"}}


def _called() -> set[Right]:
    """Every API call in `cluster`."""
    found = set()
    for module in _modules():
        for method, kinds in _calls(module):
            for kind in kinds:
                found |= _rights(method, kind)
    return found


def _modules() -> Iterator[ModuleType]:
    names = {module.name for module in pkgutil.iter_modules(cluster.__path__)}
    assert names >= {"run_reconciler", "backend", "credentials", "status_writer", "pod_diagnostics", "finalizer", "elector"}
    yield from (import_module(f"{cluster.__name__}.{name}") for name in sorted(names - {"api"}))


def _calls(module: ModuleType) -> Iterator[tuple[str, list[Kind]]]:
    """Method and kinds of each call on an object named `api`, or with a kind as its first argument."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        kinds = _kinds(node.args[0], module)
        if _last_name(node.func.value) == "api" or kinds:
            assert node.func.attr in METHODS, f"{module.__name__}: {ast.unparse(node)}"
            assert kinds, f"{module.__name__}: {ast.unparse(node)}"
            yield node.func.attr, kinds


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _kinds(node: ast.expr, module: ModuleType) -> list[Kind]:
    """The kinds that a first argument can be: a named kind, or any kind of a table; empty for anything else."""
    named = vars(module).get(_last_name(node.value if isinstance(node, ast.Subscript) else node))
    found = list(named.values()) if isinstance(named, dict) else [named]
    return [kind for kind in found if isinstance(kind, Kind)]


def _rights(method: str, kind: Kind) -> set[Right]:
    """The rights that the API server requires for the request that this method sends."""
    client = _RecordingClient()
    call = getattr(Api(client), method)  # type: ignore[arg-type]
    needed = [
        name for name, parameter in inspect.signature(call).parameters.items() if parameter.default is parameter.empty and name != "kind"
    ]
    call(kind, **{name: _ARGUMENTS[name] for name in needed})
    name, _, subresource = client.path.partition("?")[0].removeprefix(kind.path("somewhere")).strip("/").partition("/")
    verbs = {
        "GET": {"get" if name else "list"},
        "POST": {"create"},
        "PATCH": {"patch"},
        "DELETE": {"delete" if name else "deletecollection"},
    }
    return {(kind.group, f"{kind.plural}/{subresource}" if subresource else kind.plural, verb) for verb in verbs[client.method]}


class _RecordingClient:
    """A client that records the one request that it gets."""

    status = 200

    def param_serialize(self, method: str, path: str, *, header_params: dict[str, str], **_: Any) -> tuple[()]:
        del header_params
        self.method, self.path = method, path
        return ()

    def call_api(self, **_: Any) -> "_RecordingClient":
        return self

    def read(self) -> bytes:
        return b'{"metadata": {}, "items": []}'


@cache
def _watched() -> dict[str, list[Any]]:
    """What the handlers have kopf watch. Runs in a separate process, since importing the handlers registers them."""
    output = subprocess.run([sys.executable, "-c", _WATCHES], capture_output=True, text=True, check=True)
    found: dict[str, list[Any]] = json.loads(output.stdout)
    return found


def _owner_rights() -> set[Right]:
    """An ownerReference with blockOwnerDeletion requires the right to update the owner's finalizers."""
    run = a_run()
    owners = task_secret(run, Job("job", TaskKind.EXPORT), "{}", {})["metadata"]["ownerReferences"]
    assert [owner["blockOwnerDeletion"] for owner in owners] == [True]
    return {("fedpipe.io", "federatedfinetunes/finalizers", "update")}

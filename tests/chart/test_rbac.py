"""The operator's role is what its code calls and what kopf watches for it: no verb and no resource more, or less."""

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
from fedpipe_operator.cluster.api import APPLY, Api, Kind
from fedpipe_operator.manifests import task_secret

Right = tuple[str, str, str]
"""Group, resource, verb."""

METHODS = ("serves", "get", "find", "names", "create", "apply", "merge", "replace_status", "delete", "delete_all")

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
told = [registry._indexing, registry._watching]
acting = [registry._changing, registry._spawning, registry._webhooks]
names = lambda kinds: sorted({(one.group, one.any_name) for kind in kinds for one in kind.get_all_selectors()})
print(json.dumps({"told": names(told), "acting": names(acting)}))
"""


def test_the_operators_rules_are_what_its_code_needs() -> None:
    watched = {(group, plural, verb) for group, plural in _watched()["told"] for verb in ("list", "watch")}
    of_nodes = {(group, resource, verb) for group, resource, verb in _called() | watched if resource == "nodes"}

    assert granted(rules("operator")) == (_called() | watched | _owning()) - of_nodes
    assert granted(rules("nodes")) == of_nodes


def test_nodes_are_listed_and_watched_and_nothing_more() -> None:
    assert granted(rules("nodes")) == {("", "nodes", "list"), ("", "nodes", "watch")}
    assert ["", "nodes"] in _watched()["told"]


def test_kopf_only_looks_so_it_writes_to_nothing() -> None:
    """Handlers that keep a state, and admission webhooks, would have kopf patch what it watches and more."""
    assert _watched()["acting"] == []


def test_every_call_that_there_is_is_known_here() -> None:
    public = {name for name, one in inspect.getmembers(Api, inspect.isfunction) if not name.startswith("_")}

    assert public == set(METHODS)


@pytest.mark.parametrize("kind", ["federatedfinetunes", "edgesites"])
def test_people_may_read_a_status_and_write_none(kind: str) -> None:
    for role, its_rules in rules("users").items():
        verbs = {verb for group, resource, verb in granted(its_rules) if (group, resource) == ("fedpipe.io", f"{kind}/status")}

        assert verbs == {"get"}, role


def test_a_viewer_only_looks_an_editor_makes_runs_and_an_admin_makes_sites_too() -> None:
    writes = {
        role: {resource for _, resource, verb in granted(its_rules) if verb not in ("get", "list", "watch")}
        for role, its_rules in rules("users").items()
    }

    assert writes == {"view": set(), "edit": {"federatedfinetunes"}, "admin": {"federatedfinetunes", "edgesites"}}


def _called() -> set[Right]:
    """Every call of the API in `cluster`."""
    found = set()
    for module in _modules():
        for method, kinds in _calls(module):
            for kind in kinds:
                found |= _rights(method, kind)
    return found


def _modules() -> Iterator[ModuleType]:
    names = {one.name for one in pkgutil.iter_modules(cluster.__path__)}
    assert names >= {"run_reconciler", "backend", "credentials", "status_writer", "pod_diagnostics", "finalizer"}
    yield from (import_module(f"{cluster.__name__}.{name}") for name in sorted(names - {"api"}))


def _calls(module: ModuleType) -> Iterator[tuple[str, list[Kind]]]:
    """Method and kinds of each call on something called `api`, or about a kind."""
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
    """What a first argument can be: a kind by its name, or any of a table's; none if it is something else."""
    named = vars(module).get(_last_name(node.value if isinstance(node, ast.Subscript) else node))
    found = list(named.values()) if isinstance(named, dict) else [named]
    return [one for one in found if isinstance(one, Kind)]


def _rights(method: str, kind: Kind) -> set[Right]:
    """What the API server asks before it does what this method sends."""
    sent = _Sent()
    call = getattr(Api(sent), method)  # type: ignore[arg-type]
    needed = [name for name, one in inspect.signature(call).parameters.items() if one.default is one.empty and name != "kind"]
    call(kind, **{name: _ARGUMENTS[name] for name in needed})
    name, _, subresource = sent.path.partition("?")[0].removeprefix(kind.path("somewhere")).strip("/").partition("/")
    verbs = {
        "GET": {"get" if name else "list"},
        "POST": {"create"},
        "PATCH": {"patch", "create"} if sent.content_type == APPLY else {"patch"},
        "DELETE": {"delete" if name else "deletecollection"},
    }
    return {(kind.group, f"{kind.plural}/{subresource}" if subresource else kind.plural, verb) for verb in verbs[sent.method]}


class _Sent:
    """A client that notes the one request that it is given."""

    status = 200

    def param_serialize(self, method: str, path: str, *, header_params: dict[str, str], **_: Any) -> tuple[()]:
        self.method, self.path, self.content_type = method, path, header_params["Content-Type"]
        return ()

    def call_api(self, **_: Any) -> "_Sent":
        return self

    def read(self) -> bytes:
        return b'{"metadata": {}, "items": []}'


@cache
def _watched() -> dict[str, list[Any]]:
    """What the handlers have kopf watch. In a process of its own: handlers register where they are imported."""
    said = subprocess.run([sys.executable, "-c", _WATCHES], capture_output=True, text=True, check=True)
    found: dict[str, list[Any]] = json.loads(said.stdout)
    return found


def _owning() -> set[Right]:
    """Where an owner is to wait for what it owns, naming it as such needs a right on its finalizers."""
    run = a_run()
    owners = task_secret(run, Job("job", TaskKind.EXPORT), "{}")["metadata"]["ownerReferences"]
    assert [one["blockOwnerDeletion"] for one in owners] == [True]
    return {("fedpipe.io", "federatedfinetunes/finalizers", "update")}

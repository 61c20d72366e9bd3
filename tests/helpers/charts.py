"""The chart: its files, and the objects that Helm renders from them."""

import copy
import itertools
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from testcluster.layout import default_layout
from testcluster.programs import binary

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "fedpipe"

Plain = dict[str, Any]

API_SERVER: Plain = {"networkPolicy.apiServerCIDRs": ["10.96.0.1/32", "192.0.2.1/32", "fd00:96::1/128"]}
"""A value that Helm otherwise takes from the cluster."""


def values() -> Plain:
    """The default values."""
    return copy.deepcopy(_values())


@cache
def _values() -> Plain:
    found: Plain = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def rules(name: str) -> Any:
    """A file of RBAC rules from which the chart builds its roles."""
    return yaml.safe_load((CHART / "files" / "rules" / f"{name}.yaml").read_text())


def granted(rules: list[Plain]) -> set[tuple[str, str, str]]:
    """Rules expanded to triples of group, resource and verb; a duplicate, or a rule for named objects other than Leases, fails."""
    of_kinds = [rule for rule in rules if rule["resources"] != ["leases"]]
    assert all(rule.keys() == {"apiGroups", "resources", "verbs"} for rule in of_kinds)
    lines = [(rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in rules]
    found = [triple for line in lines for triple in itertools.product(*line)]
    assert len(found) == len(set(found))
    return set(found)


def helm(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run Helm: the one on the PATH, else the test cluster's."""
    program = shutil.which("helm") or binary(default_layout(), "helm")
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


def rendered(given: Plain | None = None, *options: str, name: str = "fedpipe", namespace: str = "fedpipe") -> list[Plain]:
    """The objects of a release with these values, and with `API_SERVER`; without those of `helm test`, which only its run creates."""
    return [one for one in _templates(given, options, name, namespace) if not _is_test(one)]


def rendered_tests(given: Plain | None = None) -> list[Plain]:
    """The objects that `helm test` creates."""
    return [one for one in _templates(given, (), "fedpipe", "fedpipe") if _is_test(one)]


def complaint(given: Plain, *options: str) -> str:
    """What Helm says of values with which it renders nothing."""
    done = helm("template", "fedpipe", CHART, *options, *set_values(API_SERVER | given))
    assert done.returncode != 0, "it was rendered"
    return done.stderr


def _templates(given: Plain | None, options: tuple[str, ...], name: str, namespace: str) -> list[Plain]:
    done = helm("template", name, CHART, "--namespace", namespace, *options, *set_values(API_SERVER | (given or {})))
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def _is_test(one: Plain) -> bool:
    return "helm.sh/hook" in one["metadata"].get("annotations", {})


def of_kind(objects: list[Plain], kind: str) -> list[Plain]:
    """The objects of this kind."""
    return [one for one in objects if one["kind"] == kind]


def coalesced(defaults: Plain, given: Plain) -> Plain:
    """The values that Helm gives the templates and the schema: maps are merged, and null removes a default."""
    merged = dict(defaults)
    for name, value in given.items():
        default = defaults.get(name)
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = coalesced(default, value) if isinstance(default, dict) and isinstance(value, dict) else value
    return merged


def set_values(given: Plain) -> list[str]:
    """Helm's options that set these values by their paths."""
    return [option for path, value in given.items() for option in ("--set-json", f"{path}={json.dumps(value)}")]

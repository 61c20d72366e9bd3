"""The chart: its files as they lie there, and as Helm makes objects of them."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml
from testcluster.layout import default_layout
from testcluster.programs import binary

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "fedpipe"

Plain = dict[str, Any]


def values() -> Plain:
    """The defaults."""
    found: Plain = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def rules(name: str) -> Any:
    """A file of rules, from which the roles are made."""
    return yaml.safe_load((CHART / "files" / "rules" / f"{name}.yaml").read_text())


def granted(rules: list[Plain]) -> set[tuple[str, str, str]]:
    """Rules as group, resource and verb, one by one; a rule twice or for named objects alone would be a mistake here."""
    assert all(rule.keys() == {"apiGroups", "resources", "verbs"} for rule in rules)
    lines = [(rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in rules]
    found = [right for line in lines for right in itertools.product(*line)]
    assert len(found) == len(set(found))
    return set(found)


def helm(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    """What Helm says: the one on the PATH, else the one that the test cluster was built with."""
    program = shutil.which("helm") or binary(default_layout(), "helm")
    return subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, check=False)


def rendered(given: Plain | None = None, *, name: str = "fedpipe", namespace: str = "fedpipe") -> list[Plain]:
    """The objects of a release with these values."""
    said = helm("template", name, CHART, "--namespace", namespace, *_set(given or {}))
    assert said.returncode == 0, said.stderr
    return [one for one in yaml.safe_load_all(said.stdout) if one]


def of_kind(objects: list[Plain], kind: str) -> list[Plain]:
    """Those of this kind."""
    return [one for one in objects if one["kind"] == kind]


def _set(given: Plain) -> list[str]:
    return [word for path, value in given.items() for word in ("--set-json", f"{path}={json.dumps(value)}")]

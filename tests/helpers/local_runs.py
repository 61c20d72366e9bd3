"""A small fleet on disk: a toy model, the data of three sites and the YAML for `fedpipe run`."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MANUAL = {
    "mode": "Manual",
    "bits": [32],
    "ranks": [2, 4],
    "batchSizes": [4],
    "importance": "None",
    "plans": [{"bits": 32, "rank": 4, "steps": 4}],
}
"""Plans that do not depend on measured speeds, so that two runs make the same bytes."""
SEEN = {"north": ("sport", "art"), "south": ("art", "food"), "west": ("food", "sport")}
"""The two classes that each site sees."""
WORDS = {"sport": "ball goal team", "art": "brush paint frame", "food": "bread salt oven"}


@dataclass(frozen=True)
class Fleet:
    """A folder with the YAML and volumes of a run, and the command that runs it."""

    folder: Path

    def run(self, *options: str, expect: int = 0, env: dict[str, str] | None = None) -> str:
        """Execute `fedpipe run` to its end; the result is its output."""
        result = subprocess.run(self.command(*options), capture_output=True, text=True, check=False, env=self.environment(env))
        assert result.returncode == expect, result.stdout + result.stderr
        return result.stdout + result.stderr

    def start(self, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `fedpipe run` in the background, in its own process group."""
        return subprocess.Popen(
            self.command(*options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(env),
            start_new_session=True,
        )

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "fedpipe_operator.cli", "run", str(self.folder), "--output", str(self.folder / "runs"), *options]

    def environment(self, env: dict[str, str] | None) -> dict[str, str]:
        return os.environ | {"FEDPIPE_CACHE": str(self.folder / "cache"), "COLUMNS": "400"} | (env or {})

    def change(self, kind: str, **spec: Any) -> None:
        """Replace fields in the spec of every object of this kind."""
        documents = list(yaml.safe_load_all((self.folder / "run.yaml").read_text()))
        for document in documents:
            if document["kind"] == kind:
                document["spec"] |= spec
        (self.folder / "run.yaml").write_text(yaml.safe_dump_all(documents))

    @property
    def store(self) -> Path:
        return self.folder / "runs" / "default" / "toy" / "store"

    def adapters(self) -> dict[str, bytes]:
        """Every global adapter of the run."""
        return {
            path.relative_to(self.store).as_posix(): path.read_bytes() for path in sorted(self.store.glob("rounds/*/global/*.safetensors"))
        }


def a_fleet(folder: Path) -> Fleet:
    """Three sites that each see two of three classes, and two rounds of four steps."""
    return _fleet(folder, "bert", {site: _rows(site, 24) for site in SEEN})


def an_uneven_fleet(folder: Path) -> Fleet:
    """The same classes, at sites with different numbers of samples and of a model that needs much memory for a long one.

    MPNet computes its attention without fusing it: the activations of 16 samples of 512 tokens take some hundred megabytes a layer.
    """
    counts = {"north": 48, "south": 48, "west": 16}
    rows = {site: _rows(site, count) for site, count in counts.items()}
    for found in rows.values():
        found[0]["text"] *= 50
    return _fleet(folder, "mpnet", rows)


def _fleet(folder: Path, model: str, train: Mapping[str, list[dict[str, str]]]) -> Fleet:
    """Write model, data and YAML."""
    from toys import make_toy  # noqa: PLC0415 -- it imports PyTorch: seconds of processor time in each worker that collects the tests

    make_toy(model, folder / "volumes" / "models" / "toy")
    for site, rows in train.items():
        volume = folder / "volumes" / f"{site}-data"
        volume.mkdir(parents=True)
        for file, found in (("train", rows), ("validation", _rows(site, 6))):
            (volume / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "run.yaml").write_text(yaml.safe_dump_all([_run(), *(_site(site) for site in train)]))
    return Fleet(folder)


def _rows(site: str, count: int) -> list[dict[str, str]]:
    labels = SEEN[site]
    return [{"text": f"{WORDS[labels[at % 2]]} {at}", "label": labels[at % 2]} for at in range(count)]


def _run() -> dict[str, Any]:
    return {
        "apiVersion": "fedpipe.io/v1alpha1",
        "kind": "FederatedFineTune",
        "metadata": {"name": "toy"},
        "spec": {
            "model": {"source": "pvc://models/toy"},
            # Declared, since a test may leave only two sites, which have one label in common.
            "task": {"type": "SequenceClassification", "labels": sorted(WORDS), "maxLength": 32},
            "rounds": {"count": 2, "deadline": "5m"},
            "planning": MANUAL,
            "training": {"learningRate": 5e-3},
            "evaluation": {"samples": 1},
            "store": {"bucket": "fedpipe", "prefix": "runs"},
        },
    }


def _site(name: str) -> dict[str, Any]:
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "volume": {"persistentVolumeClaim": {"claimName": f"{name}-data"}}}
    return {
        "apiVersion": "fedpipe.io/v1alpha1",
        "kind": "EdgeSite",
        "metadata": {"name": name},
        # The loosest policy that a test of this fleet needs: also runs of one site.
        "spec": {
            "capacity": {"cpu": 1, "memory": "4Gi"},
            "data": data,
            "modelClaims": ["models"],
            "policy": {"minSites": 1, "localBaseline": True, "maxShownRows": 1},
        },
    }

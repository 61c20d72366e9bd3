"""The commands of docs/edge.md and docs/compression.md as they are written: a toy is made, its sites train it, then once with few bytes."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from readmes import blocks, follow

# Slow (`make slow`): the toy is trained from nothing, in a minute or two.
pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "edge.md"
COMPRESSION: Final = ROOT / "docs" / "compression.md"


def status_of(run: str, folder: Path) -> Any:
    return json.loads((folder / "runs" / "default" / run / "status.json").read_text())


def test_the_example_trains_its_toy_and_says_what_each_site_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPIPE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("volumes", "__pycache__"))
    for name, module in (("fedpipe", "-m fedpipe_operator.cli"), ("python", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (tmp_path / name).chmod(0o755)
    (commands,) = blocks(PAGE.read_text())

    follow(commands, folder=tmp_path, first_in_path=tmp_path)

    status = status_of("edge", tmp_path)
    assert status["metric"]["value"] < 1.5, f"of {os.cpu_count()} cores; the untouched base has a perplexity above 100"
    measured = {one["site"]: one for one in status["measured"]}
    assert set(measured) == {"pump", "lift", "turbine"}
    for one in measured.values():
        assert 0 < one["tokensPerSecond"] <= one["paddedTokensPerSecond"]
        assert 0 < one["mfu"] < 1
        assert min(one["granularity"], one["uploadedBytes"], one["downloadedBytes"], one["bitsPerSecond"]) > 0
        assert ("tokensPerJoule" in one) == ("energySource" in one)

    (compressed,) = blocks(COMPRESSION.read_text())
    follow(compressed, folder=tmp_path, first_in_path=tmp_path)

    with_codec = status_of("edge-compressed", tmp_path)
    assert with_codec["metric"]["value"] < 1.5
    for one in with_codec["measured"]:
        assert one["codecs"]["Int4"] > 0
        assert one["updateCosine"] > 0.98
    sent, sent_plain = (sum(one["uploadedBytes"] for one in found["history"]) for found in (with_codec, status))
    assert sent < 0.6 * sent_plain, "a toy's headers and results weigh more than a model's; the plans may differ, too"

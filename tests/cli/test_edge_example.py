"""The commands of docs/edge.md and docs/compression.md: a toy is made, its sites train it, then once with few bytes.

In short on every change: a toy that has learned nothing, few steps and rounds. As they are written every night.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from readmes import blocks, follow

pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = {name: ROOT / "docs" / f"{name}.md" for name in ("edge", "compression")}
RUN: Final = "fedpipe run --no-compare"
LEARNS_NOTHING: Final = {"_STEPS: Final = 400": "_STEPS: Final = 1", "_CORPUS: Final = 4000": "_CORPUS: Final = 400"}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples and the programs that the commands name."""
    monkeypatch.setenv("FEDPIPE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("volumes", "__pycache__"))
    for name, module in (("fedpipe", "-m fedpipe_operator.cli"), ("python", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (tmp_path / name).chmod(0o755)
    return tmp_path


def status_after(page: str, run: str, folder: Path, options: str = "") -> Any:
    """The status of this run once the page's commands are done; `options` are added to theirs."""
    (commands,) = blocks(PAGES[page].read_text())
    assert RUN in commands
    follow(commands.replace(RUN, f"{RUN} {options}"), folder=folder, first_in_path=folder)
    return json.loads((folder / "runs" / "default" / run / "status.json").read_text())


def expect_the_figures_of_each_site(status: Any) -> None:
    measured = {one["site"]: one for one in status["measured"]}
    assert set(measured) == {"pump", "lift", "turbine"}
    for one in measured.values():
        assert 0 < one["tokensPerSecond"] <= one["paddedTokensPerSecond"]
        assert 0 < one["mfu"] < 1
        assert min(one["granularity"], one["uploadedBytes"], one["downloadedBytes"], one["bitsPerSecond"]) > 0
        assert ("tokensPerJoule" in one) == ("energySource" in one)


def expect_compressed_updates(status: Any) -> None:
    for one in status["measured"]:
        assert one["codecs"]["Int4"] > 0
        assert one["updateCosine"] > 0.98


def test_the_examples_run_and_say_what_each_site_reached(workplace: Path) -> None:
    toy = workplace / "examples" / "ingredients" / "toy_t5.py"
    code = toy.read_text()
    for old, new in LEARNS_NOTHING.items():
        assert old in code
        code = code.replace(old, new)
    toy.write_text(code)

    plain = status_after("edge", "edge", workplace, "--rounds 2 --max-steps 2")
    compressed = status_after("compression", "edge-compressed", workplace, "--rounds 1 --max-steps 2")

    expect_the_figures_of_each_site(plain)  # of round 2: the first one downloads no adapter
    expect_compressed_updates(compressed)


@pytest.mark.nightly
def test_the_example_trains_its_toy_and_few_bytes_are_as_good(workplace: Path) -> None:
    plain = status_after("edge", "edge", workplace)
    compressed = status_after("compression", "edge-compressed", workplace)

    assert plain["metric"]["value"] < 1.5, f"of {os.cpu_count()} cores; the untouched base has a perplexity above 100"
    assert compressed["metric"]["value"] < 1.5
    expect_the_figures_of_each_site(plain)
    expect_compressed_updates(compressed)
    sent, sent_plain = (sum(one["uploadedBytes"] for one in found["history"]) for found in (compressed, plain))
    assert sent < 0.6 * sent_plain, "a toy's headers and results weigh more than a model's; the plans may differ, too"

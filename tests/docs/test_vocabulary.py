"""The project speaks its field's language: words of its own that had a standard term do not come back."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".tpl", ".txt", ".j2", ".js", ".css", ".json", ".sh"}
NAMES = {"Makefile", "run", "Dockerfile.operator", "Dockerfile.trainer"}

OLD = {
    "farewell": "finalizer",
    "bid_farewell": "finalize",
    "roll call": "cache check",
    "strays": "drift",
    "astray": "diverged",
    "weather": "transient error",
    "TryAgain": "TransientError",
    "TellUser": "UserError",
    "SeenJob": "JobStatus",
    "AT_WORK": "ACTIVE_STATES",
    "is_at_work": "is_active",
    "ClusterDoor": "ClusterBackend",
    "LocalDoor": "LocalBackend",
    "Door": "JobBackend",
    "door": "job backend; of layers: import rule",
    "doors": "job backends; of layers: import rules",
    "Voice": "StatusWriter",
    "ClusterVoice": "ClusterStatusWriter",
    "Desk": "TaskContext",
    "_Shelf": "a reader",
    "NOBODY": "FROZEN_ADAPTER",
    "frozen tail": "frozen residual",
    "tail_rank": "global_rank",
    "undiffed": "diffbase",
    "NoDiffs": "NullDiffBaseStorage",
    "held_up": "blocked",
    "hang_up": "close_pipes",
    "_bury": "_on_exit",
    "on_deaf": "on_broken_pipe",
    "inheritance": "process lock",
    "keep_freed": "tune_malloc_for_aggregation",
    "share_freed": "limit_malloc_to_one_arena",
    "abreast": "parallel",
    "side_by_side": "max_concurrent",
    "side-by-side": "max-concurrent",
    "fedpipe_trainer.fitting": "fedpipe_trainer.executable_batch_size",
    "RoundManifest": "RoundCommit",
    "ProfileManifest": "ProfileResult",
    "UpdateManifest": "TrainResult",
    "EvaluationManifest": "EvaluateResult",
    "ExportManifest": "ExportResult",
    "parse_manifest": "parse_result",
    "round_manifest": "round_commit",
    "manifest.json": "result.json or commit.json",
    "numbers_in": "Listing.attempts",
    "ClusterMap": "in_pods",
    "LocalMap": "in_folders",
    "sessions_alone": "local_only_sessions",
    "alone_folder": "local_only_folder",
    "Workplace": "TaskRuntime",
    "look_again_at": "requeue_at",
    "note_look": "run_reconciled",
    "on_look": "on_reconciled",
    "run_outlines": "run_summaries",
    "status.quorum": "status.updates",
}
"""The standard term by the word that it replaced; whole words."""

PHRASES = [
    "waited for in vain",
    "is no number",
    "blows the model up",
    "is taken for lost",
    "update of nothing",
    "sight of nodes",
    "lost its way",
    "starts anew",
    "started anew",
    "a base no more",
    "nobody waits for",
    "stands in the way",
    "whose turn it is",
    "goes by round",
    "sites are guests",
    "between the rooms",
]
"""Sentences that readers stumbled over."""


def texts() -> dict[str, str]:
    """The tracked text files but this one, by path."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = [ROOT / name for name in listed if Path(name).suffix in SUFFIXES or Path(name).name in NAMES]
    return {str(file.relative_to(ROOT)): file.read_text() for file in wanted if file.is_file() and file != Path(__file__)}


TEXTS = texts()


@pytest.mark.parametrize("word", OLD)
def test_a_word_with_a_standard_term_is_gone(word: str) -> None:
    pattern = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
    found = [f"{name}:{text[: match.start()].count(chr(10)) + 1}" for name, text in TEXTS.items() for match in pattern.finditer(text)]

    assert found == [], f"write {OLD[word]}"


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_sentence_that_readers_stumbled_over_is_gone(phrase: str) -> None:
    assert [name for name, text in TEXTS.items() if phrase in text.replace("\n", " ")] == []


def test_the_texts_are_there() -> None:
    assert {"README.md", "pyproject.toml", "crds/edgesites.yaml", ".ci/run", "operator/fedpipe_operator/rounds/decide.py"} <= TEXTS.keys()

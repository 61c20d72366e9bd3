"""No model brings code of its own: transformers is told so at every load, and does not ask on stdin."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedpipe_trainer
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.contract.objective import SequenceClassification
from fedpipe_trainer.failures import TaskFailed
from fedpipe_trainer.model.architecture import read_config
from fedpipe_trainer.model.base import read_tokenizer

TRAINER = Path(next(iter(fedpipe_trainer.__path__)))
LOADERS = ("from_pretrained", "from_config", "pipeline", "get_class_from_dynamic_module")


def loads() -> Iterator[tuple[str, dict[str | None, str]]]:
    """Where transformers loads something, with its keyword arguments."""
    for file in sorted(TRAINER.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in LOADERS:
                yield f"{file.name}:{node.lineno}", {one.arg: ast.unparse(one.value) for one in node.keywords}


def test_trust_remote_code_is_false_at_every_load() -> None:
    found = dict(loads())

    assert len(found) >= 5
    assert [where for where, given in found.items() if given.get("trust_remote_code") != "False"] == []


def test_a_model_with_code_of_its_own_is_refused_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("transformers asks on stdin")

    monkeypatch.setattr("builtins.input", asked)
    own = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": own}))
    (tmp_path / "evil.py").write_text("raise SystemExit('the code of a model ran')")

    for load in (lambda: read_config(tmp_path, SequenceClassification(labels=("a", "b"))), lambda: read_tokenizer(tmp_path)):
        with pytest.raises(TaskFailed) as failure:
            load()

        assert failure.value.reason is FailureReason.BAD_MODEL

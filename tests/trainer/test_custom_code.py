"""No model brings code of its own, in a module or in a pickle: transformers is told so at every load, and does not ask on stdin."""

import ast
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fedpipe_trainer
from fedpipe_trainer.contract import FailureReason, Model
from fedpipe_trainer.contract.objective import SequenceClassification
from fedpipe_trainer.failures import TaskFailed
from fedpipe_trainer.model import fetch, fingerprint, load
from fedpipe_trainer.model.architecture import read_config
from fedpipe_trainer.model.base import read_tokenizer
from fedpipe_trainer.task_runtime import TaskRuntime

TRAINER = Path(next(iter(fedpipe_trainer.__path__)))
CLASSES = SequenceClassification(labels=("a", "b"))
LOADERS = ("from_pretrained", "from_config", "pipeline", "get_class_from_dynamic_module")


def loads() -> Iterator[tuple[str, dict[str | None, str]]]:
    """Where transformers loads something, with its keyword arguments."""
    for file in sorted(TRAINER.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            of, _, function = ast.unparse(node.func).rpartition(".")
            if function in LOADERS and of != "PeftModel":  # peft loads factors onto a model that is there
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

    for use in (lambda: read_config(tmp_path, CLASSES), lambda: read_tokenizer(tmp_path)):
        with pytest.raises(TaskFailed) as failure:
            use()

        assert failure.value.reason is FailureReason.BAD_MODEL


class Exploit:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def booby_trapped(toy: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model of a known type with a pickle and a module beside its files, each of which leaves a mark if it is run."""
    folder = Path(shutil.copytree(toy("bert"), tmp_path / "model"))
    for name in ("pytorch_model.bin", "training_args.bin", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(Exploit(tmp_path / "owned")))
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'owned')!r}).touch()")
    own = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.M",
        "AutoModelForSequenceClassification": "evil.M",
        "AutoTokenizer": ["evil.T", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | {"auto_map": own}))
    return folder


def test_a_pickle_that_is_unpickled_leaves_its_mark(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Exploit(tmp_path / "owned")))  # noqa: S301 -- our own: without it the tests below could not fail

    assert (tmp_path / "owned").exists()


def test_neither_pickles_nor_code_beside_a_model_of_a_known_type_are_run(booby_trapped: Path) -> None:
    base = load(booby_trapped, 32, CLASSES)

    assert type(base.model).__module__.startswith("transformers.")
    assert not booby_trapped.with_name("owned").exists()


def test_a_model_that_is_only_a_pickle_is_refused_unread(booby_trapped: Path, runtime: TaskRuntime) -> None:
    (booby_trapped / "model.safetensors").unlink()

    for use in (lambda: fetch(Model(source=f"file://{booby_trapped}"), runtime), lambda: load(booby_trapped, 32, CLASSES)):
        with pytest.raises(TaskFailed) as failure:
            use()

        assert failure.value.reason is FailureReason.BAD_MODEL
    assert not booby_trapped.with_name("owned").exists()


def test_a_pickle_is_no_part_of_a_model(booby_trapped: Path) -> None:
    before = fingerprint(booby_trapped)
    (booby_trapped / "pytorch_model.bin").unlink()

    assert fingerprint(booby_trapped) == before

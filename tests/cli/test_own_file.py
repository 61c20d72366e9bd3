"""From a file of one's own to an adapter in plain PEFT, by the commands and the lines of the README, in real processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml
from chat_templates import CHATML
from readmes import blocks, follow
from toys import make_toy

# Slow (`make slow`): each command starts a trainer, and the imports of a trainer take ten seconds.
pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = {"README.md": ROOT / "README.md", "own-data.md": ROOT / "docs" / "own-data.md"}


def commands_of(page: str) -> str:
    (block,) = [block for block in blocks(PAGES[page].read_text()) if "fedpipe init" in block]
    return block


def python_of(page: str) -> str:
    found: list[str] = re.findall(r"```python\n(.*?)```", PAGES[page].read_text(), re.DOTALL)
    (code,) = [code for code in found if "AutoModelForCausalLM" in code]
    return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: conversations, and a small model that has a chat template."""
    made = tmp_path_factory.mktemp("own")
    make_toy("llama", made / "models" / "base")
    (made / "models" / "base" / "chat_template.jinja").write_text(CHATML)
    turns = [[{"role": "user", "content": f"ask {at}"}, {"role": "assistant", "content": f"say {at % 3}"}] for at in range(40)]
    (made / "notes.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    return made


def test_both_pages_have_the_same_commands() -> None:
    without_comments = [re.sub(r" +#.*", "", commands_of(page)) for page in PAGES]

    assert without_comments[0] == without_comments[1]


def test_the_commands_lead_from_a_file_to_an_adapter_that_loads_in_plain_peft(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fedpipe").write_text(f'#!/bin/sh\nexec {sys.executable} -m fedpipe_operator.cli "$@"\n')
    (tmp_path / "fedpipe").chmod(0o755)

    follow(commands_of("README.md"), folder=folder, first_in_path=tmp_path)
    loaded = subprocess.run(
        [sys.executable, "-c", f"{python_of('README.md')}\nprint(model.peft_config['default'].r, tokenizer.chat_template is not None)"],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    task = next(yaml.safe_load_all((folder / "fedpipe.yaml").read_text()))["spec"]["task"]
    assert (task["type"], task["format"]) == ("CausalLM", "Messages")
    assert loaded.returncode == 0, loaded.stderr
    assert re.fullmatch(r"[1-9]\d* True\n", loaded.stdout)

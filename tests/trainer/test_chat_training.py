"""A site trains on conversations, and evaluates by generating the assistant's last turn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_training import Q0, V1, a_training_task, make_runtime
from toys import make_toy
from transformers import AutoTokenizer

from fedpipe_trainer.contract import CausalLM, DataPolicy, EvaluateTask, Evaluation, Hyperparameters, TrainTask
from fedpipe_trainer.recipes import evaluate, train

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHAT = CausalLM(format="ShareGPT", max_length=64)
TURNS = ("left", "and", "right")
ROWS = [
    {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate((f"turn {at}", *TURNS))]}
    for at in range(40)
]
Make = Callable[..., TrainTask]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    make_toy("llama", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def task(model: Path, tmp_path: Path) -> Make:
    def make(**changed: object) -> TrainTask:
        made = a_training_task(model, tmp_path, {Q0: 8, V1: 8}, objective=CHAT, **changed)
        for name in ("train", "validation"):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        return made

    return make


def test_a_site_learns_what_the_assistant_says(task: Make, tmp_path: Path) -> None:
    result = train.run(task(steps=12, hyperparameters=Hyperparameters(learning_rate=0.05)), make_runtime(tmp_path / "scratch"))

    assert result.losses[-1] < result.losses[0] - 0.1
    assert result.skipped_rows == 0


def test_an_evaluation_generates_the_last_turn_and_shows_the_conversation_before_it(task: Make, tmp_path: Path) -> None:
    trained = task()
    asked = EvaluateTask(
        **trained.model_dump(include={"run", "site", "round", "attempt", "model", "result", "objective", "data", "contributors"}),
        bits=32,
        batch_size=4,
        evaluation=Evaluation(max_samples=6, generations=3, max_new_tokens=4, samples=1),
        policy=DataPolicy(max_shown_rows=1),
    )

    result = evaluate.run(asked, make_runtime(tmp_path / "scratch"))

    assert set(result.metrics) == {"perplexity", "bleu", "rougeL"}
    assert result.targets == 6 * (len("left") + len("right") + 2)
    [shown] = result.examples
    assert (shown.text, shown.expected) == ("user: turn 0\nassistant: left\nuser: and", "right")

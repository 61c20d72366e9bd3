"""Speed of generating answers, as the evaluation of a language model does it: token by token, with a cache of keys and values.

Two batches, each answered with one token and with a few more: the first tells the seconds of a prompt, the difference those of a token,
and the two batches apart tell what a token costs whatever the batch, and what each of its prompts adds. A warm-up comes first.
"""

import logging
from collections.abc import Sequence
from typing import Final

from fedpipe_trainer.contract import CausalLM, FailureReason, GenerationSpeed, Preference, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import IGNORED, Example
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.evaluation import DecodingConfig, generate_answers
from fedpipe_trainer.library_failures import location
from fedpipe_trainer.profiling.subject import Subject
from fedpipe_trainer.task_runtime import TaskRuntime

_LOG = logging.getLogger(__name__)

_BATCH: Final = 4
"""Prompts of the larger batch. It needs less memory than a training step of one sample, which keeps all activations."""
_TOKENS: Final = 4
"""Tokens beyond the first."""


def measure_generation(subject: Subject, examples: Sequence[Example], runtime: TaskRuntime) -> GenerationSpeed | None:
    """Measure the base with what is attached to it; None for a task without answers.

    It is None, too, where memory does not suffice or the model cannot generate.
    A model that cannot generate costs a training its evaluation, so it must not cost a site its profile.

    Args:
        subject: the base and the objective.
        examples: at least one, of typical length.
        runtime: its clock.

    Raises:
        Terminated: the task was requested to stop.
    """
    objective = subject.objective
    if isinstance(objective, SequenceClassification | Preference) or objective.format == "Text":
        return None
    longest = max(1, objective.max_length - 1 - _TOKENS)
    prompts = [_prompt(example)[-longest:] for example in examples]
    try:
        _seconds(subject, objective, prompts[:1], 1, runtime)
        one, one_more = (_seconds(subject, objective, prompts[:1], tokens, runtime) for tokens in (1, 1 + _TOKENS))
        batch = [prompts[i % len(prompts)] for i in range(_BATCH)]
        many, many_more = (_seconds(subject, objective, batch, tokens, runtime) for tokens in (1, 1 + _TOKENS))
    except TaskFailed as failure:
        if failure.reason is FailureReason.OUT_OF_MEMORY:
            return None
        raise
    except (RuntimeError, ValueError, IndexError, AttributeError) as error:
        # Without its message, which may quote the data: the prompts are the site's.
        _LOG.warning("the speed of generating answers could not be measured: %s in %s", type(error).__name__, location(error))
        return None
    token, token_of_batch = max(0.0, one_more - one) / _TOKENS, max(0.0, many_more - many) / _TOKENS
    each = min(token, max(0.0, token_of_batch - token) / (_BATCH - 1))
    return GenerationSpeed(prompt_seconds=many / _BATCH, token_seconds=token - each, sequence_token_seconds=each)


def _prompt(example: Example) -> list[int]:
    """The prompt of a sample: of a causal language model the tokens before its response."""
    masked = next((at for at, label in enumerate(example.labels) if label != IGNORED), len(example.labels))
    return example.input_ids[:masked] or example.input_ids


def _seconds(subject: Subject, objective: CausalLM | Seq2SeqLM, prompts: Sequence[list[int]], tokens: int, runtime: TaskRuntime) -> float:
    """Seconds of answering the prompts with exactly so many tokens."""
    if runtime.stop_requested():
        raise Terminated
    base = subject.base
    decoding = DecodingConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, pad_id=base.pad_id, end_ids=(base.tokenizer.eos_token_id,), batch_size=len(prompts)
    )
    started = runtime.elapsed_seconds()
    generate_answers(base.model, prompts, objective, decoding=decoding, before_batch=lambda: None)
    return runtime.elapsed_seconds() - started

"""How good predictions are, by known libraries: scikit-learn, sacrebleu, rouge-score. Values in, numbers out.

The libraries are imported where they are used: each costs about a second, and a task needs one kind of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed


@dataclass(frozen=True)
class Answer:
    """A generated text, what it answers, and what would have been right."""

    prompt: str
    references: tuple[str, ...]
    text: str


def of_classes(expected: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """`accuracy` and `macroF1`, both from 0 to 1; the latter over the classes that are expected or predicted here."""
    from sklearn.metrics import accuracy_score, f1_score  # noqa: PLC0415 - see the module's docstring

    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        "macroF1": float(f1_score(expected, predicted, average="macro", zero_division=0.0)),
    }


def of_answers(answers: Sequence[Answer], slots: re.Pattern[str] | None) -> dict[str, float]:
    """`bleu` (0 to 100), `rougeL` (F-measure, 0 to 1), and `slotErrorRate` where prompts name slots; nothing for no answers."""
    if not answers:
        return {}
    found = {"bleu": bleu(answers), "rougeL": rouge_l(answers)}
    wrong = None if slots is None else slot_error_rate(answers, slots)
    return found if wrong is None else {**found, "slotErrorRate": wrong}


def bleu(answers: Sequence[Answer]) -> float:
    """Corpus BLEU (Papineni et al. 2002) in sacrebleu's standard form (Post, arXiv 1804.08771), 0 to 100."""
    from sacrebleu import corpus_bleu  # noqa: PLC0415 - see the module's docstring

    references = [list(column) for column in zip_longest(*(answer.references for answer in answers), fillvalue="")]
    return float(corpus_bleu([answer.text for answer in answers], references, force=True).score)


def rouge_l(answers: Sequence[Answer]) -> float:
    """Mean over the answers of ROUGE-L's F-measure (Lin 2004) against the best reference, 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415 - see the module's docstring

    scorer = RougeScorer(["rougeL"])
    scores = [float(scorer.score_multi(list(answer.references), answer.text)["rougeL"].fmeasure) for answer in answers]
    return sum(scores) / len(scores)


def slot_error_rate(answers: Sequence[Answer], slots: re.Pattern[str]) -> float | None:
    """The share of slot values named in prompts that the answers leave out, letter case apart; None without any value."""
    named = missing = 0
    for answer in answers:
        values = {match.group(1).casefold() for match in slots.finditer(answer.prompt) if match.group(1)}
        named += len(values)
        missing += sum(value not in answer.text.casefold() for value in values)
    return missing / named if named else None


def slot_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """The objective's slot pattern, compiled.

    Raises:
        TaskFailed: BadTask, it is no regular expression, or has no group.
    """
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TaskFailed(FailureReason.BAD_TASK, f"the slot pattern {pattern!r} is no regular expression: {error}") from error
    if not compiled.groups:
        raise TaskFailed(FailureReason.BAD_TASK, f"the slot pattern {pattern!r} has no group: put what is a slot's value in ( )")
    return compiled

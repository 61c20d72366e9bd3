"""Metrics of predictions. Those of generated texts are computed by sacrebleu and rouge-score.

The libraries are imported where they are used: each import takes about a second, and a task needs only some of them.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from fedpipe_trainer.contract import BleuTokenizer, FailureReason
from fedpipe_trainer.errors import TaskFailed

_SCRIPTS_WITHOUT_SPACES: Final = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x30FF),  # Japanese kana, and the sign of repetition
    (0x3400, 0x9FFF),  # Chinese characters
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Ranges of Unicode."""


@dataclass(frozen=True)
class Answer:
    """A generated text, its prompt, and the reference texts."""

    prompt: str
    references: tuple[str, ...]
    text: str


def classification_metrics(expected: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """`accuracy` and `macroF1`, both from 0 to 1; macroF1 is over the classes that are expected or predicted here."""
    right = Counter(e for e, p in zip(expected, predicted, strict=True) if e == p)
    occurrences = Counter(expected) + Counter(predicted)
    return {
        "accuracy": right.total() / len(expected),
        # F1 = 2·TP / (2·TP + FP + FN), and what is expected plus what is predicted of a class is 2·TP + FP + FN.
        "macroF1": sum(2 * right[one] / count for one, count in occurrences.items()) / len(occurrences),
    }


def generation_metrics(answers: Sequence[Answer], slots: re.Pattern[str] | None, bleu_tokenizer: BleuTokenizer = "13a") -> dict[str, float]:
    """`bleu` (0 to 100), `rougeL` (F-measure, 0 to 1), and `slotErrorRate` if prompts name slots; no metrics if there are no answers."""
    if not answers:
        return {}
    metrics = {"bleu": bleu(answers, bleu_tokenizer), "rougeL": rouge_l(answers)}
    error_rate = None if slots is None else slot_error_rate(answers, slots)
    return metrics if error_rate is None else {**metrics, "slotErrorRate": error_rate}


def bleu(answers: Sequence[Answer], tokenizer: BleuTokenizer = "13a") -> float:
    """Corpus BLEU (Papineni et al. 2002) in sacrebleu's standard form (Post, arXiv 1804.08771), 0 to 100.

    Args:
        answers: at least one.
        tokenizer: sacrebleu's name of how words are found; `13a` finds none in scripts without spaces.
    """
    from sacrebleu import corpus_bleu  # noqa: PLC0415 - see the module's docstring

    references = [list(column) for column in zip_longest(*(answer.references for answer in answers), fillvalue="")]
    return float(corpus_bleu([answer.text for answer in answers], references, tokenize=tokenizer, force=True).score)


def rouge_l(answers: Sequence[Answer]) -> float:
    """ROUGE-L's F-measure (Lin 2004) against the best reference, averaged over the answers, 0 to 1. Words are those of `words_of`."""
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415 - see the module's docstring

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    scores = [float(scorer.score_multi(list(answer.references), answer.text)["rougeL"].fmeasure) for answer in answers]
    return sum(scores) / len(scores)


def words_of(text: str) -> list[str]:
    """The words of a text in any script, without differences of case and of compatible characters (full width, ligatures).

    A word is a run of letters, their marks and digits. Scripts that put no space between words (Chinese, Japanese, Thai, …) have each
    character as a word, as is usual for them. rouge-score's own words are of a-z and 0-9 only.
    """
    words: list[str] = []
    goes_on = False
    for sign in unicodedata.normalize("NFKC", text).casefold():
        is_part = unicodedata.category(sign)[0] in "LNM"
        if is_part and goes_on and (unicodedata.category(sign)[0] == "M" or not (_stands_alone(sign) or _stands_alone(words[-1][-1]))):
            words[-1] += sign
        elif is_part:
            words.append(sign)
        goes_on = is_part
    return words


def _stands_alone(sign: str) -> bool:
    return any(first <= ord(sign) <= last for first, last in _SCRIPTS_WITHOUT_SPACES)


class _Words:
    """A tokenizer of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return words_of(text)


def slot_error_rate(answers: Sequence[Answer], slots: re.Pattern[str]) -> float | None:
    """The share of slot values in prompts that are missing from the answers, ignoring case; None if there are no slot values."""
    total = missing = 0
    for answer in answers:
        values = {match.group(1).casefold() for match in slots.finditer(answer.prompt) if match.group(1)}
        total += len(values)
        missing += sum(value not in answer.text.casefold() for value in values)
    return missing / total if total else None


def compile_slot_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """The objective's slot pattern, compiled.

    Raises:
        TaskFailed: BadTask, it is not a regular expression, or it has no group.
    """
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # the last two: a number that is too large, groups in many groups
        raise TaskFailed(FailureReason.BAD_TASK, f"the slot pattern {pattern!r} is not a regular expression: {error}") from error
    if not compiled.groups:
        raise TaskFailed(
            FailureReason.BAD_TASK, f"the slot pattern {pattern!r} has no group: put the part that matches a slot's value in ( )"
        )
    return compiled

"""Metrics of predictions. Those of generated texts are computed by sacrebleu and rouge-score.

The libraries are imported where they are used: each import takes about a second, and a task needs only some of them.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import StatisticsError, correlation
from string import punctuation
from typing import Final

from fedpipe_trainer.contract import BleuTokenizer, FailureReason
from fedpipe_trainer.errors import TaskFailed

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
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


def multi_label_metrics(expected: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]]) -> dict[str, float]:
    """`microF1` over all decisions, and `macroF1` over the labels that are expected or predicted here, from 0 to 1; 1 if there are none.

    Args:
        expected: of each sample 1 for each label that it has, and 0 for the others.
        predicted: likewise.
    """
    right: Counter[int] = Counter()
    occurrences: Counter[int] = Counter()
    for has, says in zip(expected, predicted, strict=True):
        for label, (one, other) in enumerate(zip(has, says, strict=True)):
            right[label] += bool(one and other)
            occurrences[label] += bool(one) + bool(other)
    of_label = [2 * right[label] / count for label, count in occurrences.items() if count]
    return {
        "microF1": 2 * right.total() / occurrences.total() if occurrences.total() else 1.0,
        "macroF1": sum(of_label) / len(of_label) if of_label else 1.0,
    }


def regression_metrics(expected: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """`mse`, the mean squared error, and the correlations `pearson` and `spearman` from -1 to 1, which are 0 where all values are equal."""
    errors = [(e - p) ** 2 for e, p in zip(expected, predicted, strict=True)]
    return {
        "mse": sum(errors) / len(errors),
        "pearson": _correlation(expected, predicted),
        "spearman": _correlation(_ranks(expected), _ranks(predicted)),
    }


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    try:
        return max(-1.0, min(1.0, correlation(one, other)))
    except StatisticsError:  # one of them has a single value
        return 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    """The position of each value in their order; equal values share the mean of theirs."""
    order = sorted(values)
    first = {value: at for at, value in reversed(list(enumerate(order)))}
    counts = Counter(order)
    return [first[value] + (counts[value] - 1) / 2 for value in values]


def preference_metrics(margins: Sequence[float]) -> dict[str, float]:
    """`preferenceAccuracy`, the share of pairs whose chosen answer has the larger reward, and `rewardMargin`, by how much on average.

    Args:
        margins: by pair, at least one, the reward of the chosen answer less that of the other. Equal rewards count half: the
            untouched base, whose rewards are all equal, is right as often as wrong.
    """
    right = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins)
    return {"preferenceAccuracy": right / len(margins), "rewardMargin": sum(margins) / len(margins)}


def generation_metrics(answers: Sequence[Answer], slots: re.Pattern[str] | None, bleu_tokenizer: BleuTokenizer = "13a") -> dict[str, float]:
    """`bleu` (0 to 100), `rougeL` (F-measure, 0 to 1), and `slotErrorRate` if prompts name slots; no metrics if there are no answers."""
    if not answers:
        return {}
    metrics = {"bleu": bleu(answers, bleu_tokenizer), "rougeL": rouge_l(answers)}
    error_rate = None if slots is None else slot_error_rate(answers, slots)
    return metrics if error_rate is None else {**metrics, "slotErrorRate": error_rate}


def question_metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """`exactMatch` and `tokenF1` (0 to 1) as of SQuAD (Rajpurkar et al., arXiv 1606.05250), against the best of each answer's references.

    Case, punctuation, and the English articles do not count. Words are those of `words_of`, so that F1 works in scripts without spaces.
    """
    if not answers:
        return {}
    exact = [max(_plain(one) == _plain(answer.text) for one in answer.references) for answer in answers]
    f1 = [max(_token_f1(_plain(one), _plain(answer.text)) for one in answer.references) for answer in answers]
    return {"exactMatch": sum(exact) / len(exact), "tokenF1": sum(f1) / len(f1)}


def _plain(answer: str) -> str:
    signs = (sign for sign in answer.lower() if sign not in punctuation and unicodedata.category(sign)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", "".join(signs)).split())


def _token_f1(expected: str, said: str) -> float:
    one, other = Counter(words_of(expected)), Counter(words_of(said))
    if not one or not other:
        return float(one == other)
    return 2 * (one & other).total() / (one.total() + other.total())


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

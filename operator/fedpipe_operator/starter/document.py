"""Writes the two objects as YAML with comments. No name of a file, a column or a label can end the text or the comment that it is in."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fedpipe_operator.api.meta import API_VERSION
from fedpipe_operator.starter.context import Guess
from fedpipe_trainer.contract.inspection import ModelFacts

_WIDTH: Final = 116
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_NOT_TEXT: Final = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Words that YAML reads as something else than text."""
_LENGTHS: Final = (64, 128, 256, 512, 1024, 2048)
_CHARACTERS_OF_A_TOKEN: Final = 3
"""Rather few, so that less is cut."""
_TEMPLATE_TOKENS: Final = 32
"""What a prompt's template or a chat template adds, about."""
_NEW_TOKENS: Final = 64
"""As evaluation.maxNewTokens, by default."""
_LABEL: Final = "fine-tune"
"""The key by which the run selects its sites."""


@dataclass(frozen=True)
class Site:
    """A site as it is written."""

    name: str
    claim: str
    train: str
    """The path within the claim's volume."""
    validation: str
    origin: str
    """Where the data are from, for the comment."""
    columns: tuple[str, ...]
    """Those that the task reads of these data."""


@dataclass(frozen=True)
class Choices:
    """What is written beside the guess."""

    name: str
    """Of the run."""
    source: str
    """`spec.model.source`."""
    model_note: str
    model: ModelFacts
    model_claim: str | None
    """The claim that holds the model."""
    sites: tuple[Site, ...]


def write_document(guess: Guess, choices: Choices) -> str:
    """The YAML of the run and of its sites."""
    documents = [_run(guess, choices), *(_site(choices, site) for site in choices.sites)]
    return "---\n".join("\n".join(lines) + "\n" for lines in documents)


def max_length(guess: Guess, model: ModelFacts) -> int:
    """Tokens that take the longest row which was seen, rounded up, and no more than the model has positions for."""
    needed = guess.characters // _CHARACTERS_OF_A_TOKEN + _TEMPLATE_TOKENS
    chosen = next((length for length in _LENGTHS if length >= needed), _LENGTHS[-1])
    return min(chosen, model.positions or chosen)


def scalar(text: str) -> str:
    """A text as a scalar of YAML that is read as this text, by every parser, and nothing else."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT:
        return text
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character == "\n":  # a template ends with it
        return "\\n"
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _comment(text: str, indent: int) -> Iterator[str]:
    """A comment in lines; of whatever is in it, nothing begins a line of its own."""
    line = "".join(character if character.isprintable() else " " for character in text)
    prefix = " " * indent + "# "
    yield from textwrap.wrap(line, _WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False) or [prefix.rstrip()]


def _comments(texts: Iterable[str], indent: int) -> Iterator[str]:
    for text in texts:
        yield from _comment(text, indent)


def _run(guess: Guess, choices: Choices) -> list[str]:
    return [
        *_comment("Written by `fedpipe init` from the data and the model. Each choice says why; change what is not meant.", 0),
        f"apiVersion: {API_VERSION}",
        "kind: FederatedFineTune",
        "metadata:",
        f"  name: {scalar(choices.name)}",
        "spec:",
        *_comment(choices.model_note, 2),
        "  model:",
        f"    source: {scalar(choices.source)}",
        *_comments(map(_sentence, (guess.why, *guess.instead)), 2),
        "  task:",
        *_task(guess, choices.model),
        *_comment("The sites with this label; a round needs the updates of a share of them (quorum, 0.8).", 2),
        "  sites:",
        f"    selector: {{matchLabels: {{{_LABEL}: {scalar(choices.name)}}}}}",
        *_comment("A first look. The run ends earlier with `target` or `patience`; `fedpipe run --rounds N` overrides the count.", 2),
        "  rounds: {count: 3, deadline: 30m}",
        *_planning(choices.model),
        *_evaluation(guess, choices.model),
        *_comment(
            "Ranks, bits, batches, steps and the learning rate are left out: the planner chooses them by the sites' profiles. "
            "So is the store: `fedpipe run` uses a folder, a cluster the chart's defaultStore, or:",
            2,
        ),
        '  # store: {bucket: BUCKET, endpoint: "https://HOST", credentialsSecretRef: {name: SECRET}}',
    ]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _task(guess: Guess, model: ModelFacts) -> Iterator[str]:
    for name, value in guess.fields.items():
        yield from _field(name, value)
    if guess.labels_note:
        yield from _comment(f"{guess.labels_note}.", 4)
    length = max_length(guess, model)
    limit = f"; the model has {model.positions} positions" if model.positions else ""
    note = f"Tokens of a sample: what is longer is cut. The longest row that was seen has {guess.characters} characters{limit}"
    yield from _comment(f"{note}. `fedpipe validate --data` counts the tokens.", 4)
    yield f"    maxLength: {length}"


def _field(name: str, value: object) -> Iterator[str]:
    if isinstance(value, list):
        yield from _comment("Every label, in the order of the model's outputs; a row with another one is an error of its site.", 4)
        yield f"    {name}:"
        yield from (f"      - {scalar(str(one))}" for one in value)
    else:
        yield f"    {name}: {str(value).lower() if isinstance(value, bool) else scalar(str(value))}"


def _planning(model: ModelFacts) -> Iterator[str]:
    if not model.has_default_targets:
        yield from _comment(f"Which weights of a {model.architecture} model get adapters is not known: all linear layers do.", 2)
        yield "  planning: {targetModules: [all-linear]}"


def _evaluation(guess: Guess, model: ModelFacts) -> Iterator[str]:
    """Fewer new tokens where a prompt and an answer would not have positions otherwise."""
    generates = guess.fields["type"] in {"CausalLM", "Seq2SeqLM"} and guess.fields.get("format") != "Text"
    if generates and model.positions is not None and model.positions < 2 * _NEW_TOKENS:
        yield from _comment("Half of the model's positions are for the prompt.", 2)
        yield f"  evaluation: {{maxNewTokens: {max(1, model.positions // 2)}}}"


def _site(choices: Choices, site: Site) -> list[str]:
    alone = len(choices.sites) == 1
    return [
        f"apiVersion: {API_VERSION}",
        "kind: EdgeSite",
        "metadata:",
        f"  name: {scalar(site.name)}",
        f"  labels: {{{_LABEL}: {scalar(choices.name)}}}",
        "spec:",
        *_comment(
            "What is claimed here is the limit of the site's trainer; left out, it may use what there is. On a cluster: nodeSelector.", 2
        ),
        "  # capacity: {cpu: 2, memory: 8Gi, bandwidth: {up: 100M, down: 1G}}",
        *_comment(
            f"{site.origin} A claim is a folder of this name in volumes/ for `fedpipe run`, a PersistentVolumeClaim on a cluster.", 2
        ),
        "  data:",
        f"    train: {scalar(site.train)}",
        f"    validation: {scalar(site.validation)}",
        f"    volume: {{persistentVolumeClaim: {{claimName: {site.claim}}}}}",
        *([f"  modelClaims: [{choices.model_claim}]"] if choices.model_claim else []),
        *_comment(_policy_note(alone=alone), 2),
        "  policy:",
        f"    columns: [{', '.join(map(scalar, site.columns))}]",
        *(["    minSites: 1"] if alone else []),
    ]


def _policy_note(*, alone: bool) -> str:
    if not alone:
        mixed = "an update is mixed with another site's (minSites, 2)"
        return f"What may leave the site: tasks may read these columns, no row is ever shown, and {mixed}."
    shown = "What may leave the site: tasks may read these columns, and no row is ever shown. With one site nothing is mixed:"
    return f"{shown} its update is the result (minSites: 1). Remove that when there are more sites."

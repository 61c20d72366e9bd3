"""Guesses the task that data are for, from the facts about their columns and about the model: one rule for each form of data. Pure.

Where two readings are possible, the guess names the other one. Where none is, the error says what was seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedpipe_operator.api import Problem
from fedpipe_operator.starter.roles import (
    LABEL_NAMES,
    SENTENCES,
    Wanted,
    common_columns,
    described,
    has_every_label,
    is_text,
    label_rank,
    problem_of,
    shown,
    texts_of,
)
from fedpipe_trainer.contract import FORMAT_COLUMNS
from fedpipe_trainer.contract.inspection import ColumnFacts, DataFacts, ModelFacts

Columns = Mapping[str, ColumnFacts]
_Rule = Callable[["_Context"], "Guess | None"]

_TEXT_PAIRS: Final = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("text1", "text2"), ("question1", "question2")),
    *(("question", "sentence"), ("query", "passage"), ("query", "document"), ("text", "text_pair"), ("claim", "evidence")),
)
"""Columns of pairs of texts, as data sets name them."""
_INPUTS_AND_OUTPUTS: Final = (
    *(("instruction", "response"), ("instruction", "output"), ("question", "answer"), ("prompt", "response"), ("query", "response")),
    *(("input", "output"), ("input", "target"), ("source", "target"), ("article", "highlights"), ("article", "summary")),
    *(("document", "summary"), ("dialogue", "summary"), ("text", "summary"), ("note", "summary")),
)
"""Columns of which the second is written for the first."""
_OF_OTHER_TASKS: Final = ("prompt", "completion", "chosen", "rejected")
_PROMPTS: Final = ("prompt", "question", "instruction")
"""Of pairs of answers; without one, the prompt is what both begin with."""
_TOOLS: Final = ("tools", "functions")
_WRITES_NOTHING: Final = "is an encoder, which writes no text"
_PAIR: Final = 2
_UNNAMED: Final = len(LABEL_NAMES)


class CannotTellError(Exception):
    """No task can be guessed; the message says what was seen and what to do."""


@dataclass(frozen=True)
class Guess:
    """A task, and the reasons for a reader of the YAML."""

    fields: Mapping[str, object]
    """Of `spec.task`, in order, without `maxLength`."""
    columns: tuple[str, ...]
    """Those that the task reads."""
    why: str
    instead: tuple[str, ...] = ()
    """Other readings of the same data, and what to write for them."""
    labels_note: str = ""
    """Where labels are left out: why, and what to do."""
    characters: int = 0
    """Of the longest row that was seen, in the columns that are read."""


@dataclass(frozen=True)
class _Context:
    """What a rule knows."""

    columns: Columns
    data: Sequence[DataFacts]
    model: ModelFacts
    wanted: Wanted

    def is_there(self, *names: str) -> bool:
        """Whether all of these columns hold texts."""
        return all(name in self.columns and is_text(self.columns[name]) for name in names)

    @property
    def writes_text(self) -> bool:
        """Whether the model can; of an unknown one that is assumed."""
        return self.model.kind != "encoder"


def guess_task(data: Sequence[DataFacts], model: ModelFacts, wanted: Wanted) -> Guess:
    """The task that the data of these sites are for.

    Args:
        data: what was found at each site.
        model: what is known of the model; nothing where it could not be reached.
        wanted: columns that the user named.

    Raises:
        CannotTellError: none of the known forms, or one that the model cannot be used for.
    """
    columns = common_columns(data)
    if not columns:
        raise CannotTellError(_nothing_in_common(data))
    context = _Context(columns, data, model, wanted)
    for name in filter(None, (wanted.text, wanted.label)):
        if name not in columns:
            raise CannotTellError(f"there is no column {shown(name)}: the data have {described(columns)}")
    for rule in _rules(context):
        if (found := rule(context)) is not None:
            return found
    raise CannotTellError(_unknown(context))


def _nothing_in_common(data: Sequence[DataFacts]) -> str:
    if not any(one.columns for one in data):
        return f"the data {data[0].train} have no rows with columns: give a file that has some"
    listed = "; ".join(f"{one.train} has {described({column.name: column for column in one.columns})}" for one in data)
    return f"the files have no column in common: {listed}. Rename the columns of one, so that all sites have the same"


def _unknown(context: _Context) -> str:
    known = "messages, conversations, instruction/output, prompt/completion, context/question/answers, text/label or text"
    advice = f"name the columns by --text and --label, or rename them to those of a known form ({known}; docs/task-formats.md)"
    of_model = f"; the model {_WRITES_NOTHING}, and so needs a column with labels" if not context.writes_text else ""
    return f"no task is known for these columns: {described(context.columns)}{of_model}: {advice}"


def _rules(context: _Context) -> Sequence[_Rule]:
    """The rules in the order in which they are tried."""
    if context.wanted.label:
        return (_head,)
    if context.wanted.text:
        return (_named_head if context.writes_text else _head, _plain_text)
    if not context.writes_text:
        return (_head, _preference, _conversations, _questions, _alpaca, _prompt_completion, _template, _plain_text)
    return (
        _preference,
        _conversations,
        _questions,
        _alpaca,
        _prompt_completion,
        _named_head,
        _template,
        _text_with_a_group,
        _head,
        _plain_text,
    )


def _preference(context: _Context) -> Guess | None:
    """Pairs of answers, of which one is preferred: texts, or conversations."""
    answers = [context.columns.get(name) for name in ("chosen", "rejected")]
    chosen, rejected = answers
    if chosen is None or rejected is None or not all(is_text(one) or one.shape == "messages" for one in (chosen, rejected)):
        return None
    if context.model.kind in {"encoder", "encoder-decoder"}:
        found = f"the data have chosen and rejected answers, and the {context.model.architecture} model is an {context.model.kind}"
        raise CannotTellError(f"{found}: give a decoder, which writes answers")
    if chosen.shape == "messages":
        _require_chat_model(context.model, chosen)
    prompt = next((name for name in _PROMPTS if name in context.columns and context.columns[name].rows), "")
    fields = {"type": "Preference"} | ({"promptColumn": prompt} if prompt else {})
    why = "of two answers, 'chosen' is preferred to 'rejected' (DPO; the reference is the base without the adapter)"
    characters = max(chosen.longest_characters, rejected.longest_characters)
    characters += context.columns[prompt].longest_characters if prompt else 0
    return Guess(fields, tuple(filter(None, (prompt, "chosen", "rejected"))), why, characters=characters)


def _conversations(context: _Context) -> Guess | None:
    chats = [column for column in context.columns.values() if column.shape in {"messages", "turns"} and column.name not in _OF_OTHER_TASKS]
    if not chats:
        return None
    column = next((one for one in chats if one.name in {"messages", "conversations"}), chats[0])
    _require_chat_model(context.model, column)
    is_messages = column.shape == "messages"
    usual = "messages" if is_messages else "conversations"
    tools = next((name for name in _TOOLS if name in context.columns), "")
    fields = {"type": "CausalLM", "format": "Messages" if is_messages else "ShareGPT"}
    fields |= {"messages": column.name} if column.name != usual else {}
    fields |= {"tools": tools} if tools else {}
    keys = "role and content" if is_messages else "from and value"
    others = [f"another column has conversations, too: messages: {shown(one.name)}" for one in chats if one is not column]
    why = f"{shown(column.name)} has lists of turns with {keys}: a chat, rendered by the model's own template. The assistant's turns count"
    return Guess(fields, tuple(filter(None, (column.name, tools))), why, tuple(others), characters=column.longest_characters)


def _require_chat_model(model: ModelFacts, column: ColumnFacts) -> None:
    found = f"the column {shown(column.name)} has conversations"
    if model.kind in {"encoder", "encoder-decoder"}:
        what = _WRITES_NOTHING if model.kind == "encoder" else "is an encoder-decoder, which the chat formats are not for"
        raise CannotTellError(f"{found}, and the {model.architecture} model {what}: give a decoder that was trained for chat")
    if model.kind == "decoder" and not model.has_chat_template:
        advice = "give a model that was trained for chat, or add chat_template.jinja to its folder"
        raise CannotTellError(f"{found}, and the tokenizer of the {model.architecture} model has no chat template: {advice}")


def _questions(context: _Context) -> Guess | None:
    if not context.is_there("context", "question") or "answers" not in context.columns:
        return None
    why = "context, question and answers, as SQuAD has them: the model writes the answer, which is compared with all of them"
    return _of_format(context, "QuestionAnswering", why)


def _alpaca(context: _Context) -> Guess | None:
    extra = context.columns.get("input")
    has_input = extra is None or not extra.rows or is_text(extra)
    if not context.is_there("instruction", "output") or not has_input:
        return None
    return _of_format(context, "Alpaca", "instruction, input and output: rendered by the prompt of Stanford Alpaca. The output counts")


def _prompt_completion(context: _Context) -> Guess | None:
    if not context.is_there("prompt", "completion"):
        return None
    return _of_format(context, "PromptCompletion", "prompt and completion, taken as they are. The completion counts")


def _of_format(context: _Context, format_: str, why: str) -> Guess:
    fields = {"type": _language_task(context, why), "format": format_}
    names = FORMAT_COLUMNS[format_]
    characters = sum(context.columns[name].longest_characters for name in names if name in context.columns)
    return Guess(fields, names, f"the columns {why}", characters=characters)


def _language_task(context: _Context, what: str) -> str:
    """The type of a task that writes text, by the model."""
    if not context.writes_text:
        advice = "give a decoder or an encoder-decoder, or name a column with labels by --label"
        raise CannotTellError(
            f"the data have {what.partition(':')[0]}, and the {context.model.architecture} model {_WRITES_NOTHING}: {advice}"
        )
    return "Seq2SeqLM" if context.model.kind == "encoder-decoder" else "CausalLM"


def _template(context: _Context) -> Guess | None:
    pair = next((pair for pair in _INPUTS_AND_OUTPUTS if context.is_there(*pair)), None)
    if pair is None:
        return None
    source, target = pair
    type_ = _language_task(context, f"{source} and {target}")
    prompt = f"{{{source}}}" if type_ == "Seq2SeqLM" else f"{{{source}}}\n"
    fields = {"type": type_, "prompt": prompt, "response": f"{{{target}}}"}
    left_out = [name for name in _text_names(context) if name not in pair]
    instead = (
        [f"no part of the prompt: {', '.join(map(shown, left_out))}. Add {{column}} to it where every row has a text there"]
        if left_out
        else []
    )
    why = f"{shown(target)} is written for {shown(source)}: templates over these columns. The response counts"
    characters = sum(context.columns[name].longest_characters for name in pair)
    return Guess(fields, pair, why, tuple(instead), characters=characters)


def _text_names(context: _Context) -> list[str]:
    """The names of the columns with texts, best first."""
    return [column.name for column in texts_of(context.columns.values())]


def _plain_text(context: _Context) -> Guess | None:
    texts = [context.columns[context.wanted.text]] if context.wanted.text else texts_of(context.columns.values())
    label = context.columns.get("label")
    if texts and label is not None and label.rows and not context.wanted.text:
        _problem(label)  # it has none: it is not left out without a word
    if not texts or not is_text(texts[0]):
        return None
    is_clear = texts[0].share_of_sentences >= SENTENCES and (len(texts) == 1 or texts[0].name == "text")
    if not is_clear and not context.wanted.text:
        return None
    if context.model.kind in {"encoder", "encoder-decoder"}:
        what = f"the {context.model.architecture} model is an {context.model.kind}, and only a decoder learns from plain text"
        raise CannotTellError(f"{shown(texts[0].name)} has texts, and no other column has labels; {what}: give a decoder, or name --label")
    fields: dict[str, object] = {"type": "CausalLM", "format": "Text", "packing": True}
    fields |= {"text": texts[0].name} if texts[0].name != "text" else {}
    why = f"{shown(texts[0].name)} has texts, and no column has labels or answers: continued pre-training. Every token counts"
    instead = (f"other columns have texts, too, and are not read: {', '.join(shown(one.name) for one in texts[1:])}",) if texts[1:] else ()
    return Guess(fields, (texts[0].name,), why, instead, characters=texts[0].longest_characters)


def _text_with_a_group(context: _Context) -> Guess | None:
    """Texts with a column that is not named as labels are, such as a language or a score: for a decoder it describes them.

    What is true or false is a label, whatever its name.
    """
    groups = [column for column in context.columns.values() if problem_of(column)]
    if context.model.kind != "decoder" or not groups or any(column.kinds[:1] == ("boolean",) for column in groups):
        return None
    found = _plain_text(context)
    other = f"to predict {shown(groups[0].name)} instead: fedpipe init --label {shown(groups[0].name)}"
    return found and Guess(found.fields, found.columns, found.why, (other, *found.instead), characters=found.characters)


def _has_named_label(context: _Context) -> bool:
    return any(problem_of(column) and label_rank(column) < _UNNAMED for column in context.columns.values())


def _named_head(context: _Context) -> Guess | None:
    return _head(context) if _has_named_label(context) else None


def _head(context: _Context) -> Guess | None:
    """A label, several labels, or a number, for a text or a pair of texts."""
    targets = _targets(context)
    texts = _texts_beside(context, targets[0]) if targets else []
    if not texts:
        return None
    target, problem = targets[0], _problem(targets[0])
    fields: dict[str, object] = {"type": "SequenceClassification", "text": texts[0]}
    fields |= {"textPair": texts[1]} if len(texts) == _PAIR else {}
    fields |= {"label": target.name} | ({"problem": problem.value} if problem is not Problem.SINGLE_LABEL else {})
    labels, note = _labels(context, target, problem)
    fields |= {"labels": labels} if labels else {}
    columns = (*texts, target.name)
    characters = sum(context.columns[name].longest_characters for name in texts)
    why = f"{' and '.join(map(shown, texts))} {_told(target, problem)}"
    return Guess(fields, columns, why, _other_readings(context, targets, texts, problem), note, characters)


def _targets(context: _Context) -> list[ColumnFacts]:
    """The columns that a head may predict, best first."""
    if context.wanted.label:
        return [context.columns[context.wanted.label]]
    found = [column for column in context.columns.values() if problem_of(column) and column.name != context.wanted.text]
    return sorted(found, key=label_rank)


def _problem(target: ColumnFacts) -> Problem:
    found = problem_of(target)
    if found is None:
        seen = f"{shown(target.name)} has {target.distinct} different values in {target.rows} rows"
        rule = "labels are at most 100 values that two rows or more have, at least two of them; or numbers"
        raise CannotTellError(f"{seen}, which are no labels ({rule}): name another column by --label")
    return found


def _texts_beside(context: _Context, target: ColumnFacts) -> list[str]:
    """The text or the two texts that the label is of."""
    others = {name: column for name, column in context.columns.items() if name != target.name}
    if context.wanted.text:
        return [context.wanted.text]
    pair = next((pair for pair in _TEXT_PAIRS if all(name in others and is_text(others[name]) for name in pair)), None)
    if pair is not None:
        return list(pair)
    texts = [column.name for column in texts_of(others.values())]
    return texts if len(texts) == _PAIR and texts[0] != "text" else texts[:1]


def _labels(context: _Context, target: ColumnFacts, problem: Problem) -> tuple[list[str], str]:
    """The labels to declare, and if there are none, why."""
    if problem is Problem.REGRESSION:
        return [], ""
    labels = sorted(target.labels, key=_label_order)
    if problem is Problem.MULTI_LABEL or has_every_label(target, context.data):
        return labels, ""
    seen = (
        f"{len(labels)} labels were seen in the first rows"
        if not all(one.is_whole for one in context.data)
        else "some values are in one row only"
    )
    return [], f"labels is left out, since {seen}: those count that two sites have (of one site, its own). Declare all for a real run"


def _label_order(label: str) -> tuple[int, int, str]:
    is_number = label.removeprefix("-").isdecimal() and len(label) < 10  # noqa: PLR2004 - no label has more digits
    return (0, int(label), label) if is_number else (1, 0, label)


def _told(target: ColumnFacts, problem: Problem) -> str:
    what = {
        Problem.SINGLE_LABEL: f"one of {target.distinct} values: a label",
        Problem.MULTI_LABEL: "lists: any number of labels for each text",
        Problem.REGRESSION: "numbers: a regression, whose head has one output",
    }[problem]
    return f"with {shown(target.name)}, which has {what}"


def _other_readings(context: _Context, targets: Sequence[ColumnFacts], texts: Sequence[str], problem: Problem) -> tuple[str, ...]:
    found = []
    if targets[0].is_numeric and problem is Problem.SINGLE_LABEL and targets[0].distinct > _PAIR:
        found.append("if the numbers are amounts (stars, degrees), predict them: problem: Regression, without labels")
    if len(texts) == _PAIR and tuple(texts) not in _TEXT_PAIRS:
        found.append(f"if the two texts do not belong together, remove textPair, and {shown(texts[0])} alone is read")
    found += [f"to predict {shown(other.name)} instead: fedpipe init --label {shown(other.name)}" for other in targets[1:]]
    unread = [name for name in _text_names(context) if name not in texts and name not in {one.name for one in targets}]
    if unread:
        found.append(f"not read: {', '.join(map(shown, unread))}. To read one instead: fedpipe init --text COLUMN")
    folded = {label.casefold() for label in targets[0].labels}
    if problem is not Problem.REGRESSION and len(folded) < len(targets[0].labels):
        found.append("some labels differ by upper and lower case only: if they are the same, correct the data")
    return tuple(found)

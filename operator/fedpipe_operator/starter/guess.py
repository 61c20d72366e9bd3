"""Guesses the task that data are for, from the facts about their columns and about the model: one rule for each form of data. Pure.

Where two readings are possible, the guess names the other one. Where none is, the error says what was seen.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from fedpipe_operator.starter.context import CannotTellError, Context, Guess, text_names
from fedpipe_operator.starter.heads import flags_of, head, named_head, problem_to_predict
from fedpipe_operator.starter.judged import refuse_compared, refuse_graded
from fedpipe_operator.starter.optional import with_optional
from fedpipe_operator.starter.roles import SENTENCES, Wanted, common_columns, described, is_text, problem_of, shown, texts_of, words_of
from fedpipe_trainer.contract import FORMAT_COLUMNS
from fedpipe_trainer.contract.inspection import ColumnFacts, DataFacts, ModelFacts

_Rule = Callable[[Context], Guess | None]

_INPUTS_AND_OUTPUTS: Final = (
    *(("instruction", "response"), ("instruction", "output"), ("question", "answer"), ("prompt", "response"), ("query", "response")),
    ("question", "response"),
    *(("input", "output"), ("input", "target"), ("source", "target"), ("article", "highlights"), ("article", "summary")),
    *(("document", "summary"), ("dialogue", "summary"), ("text", "summary"), ("note", "summary"), ("prompt", "completion")),
)
"""Columns of which the second is written for the first, whatever the case of their names."""
_ASKING: Final = frozenset(
    {"user", "customer", "client", "human", "patient", "caller", "visitor", "question", "prompt", "query"}
    | {"frage", "anfrage", "kunde", "pregunta", "pergunta", "domanda"}
)
_ANSWERING: Final = frozenset(
    {"assistant", "agent", "bot", "gpt", "support", "staff", "answer", "reply", "response"}
    | {"antwort", "respuesta", "resposta", "risposta"}
)
"""Words in the headers of exported chats: `Customer Message`, `agentReply`, `Antwort`."""
_IN_TEMPLATES: Final = re.compile(r"[^{}\[\]:!.]+(\.[^{}\[\]:!.]+)*")
"""Names of columns that a template takes."""
_WRITERS: Final = ("role", "from", "speaker", "sender", "author")
_BOTH: Final = 2
_ROLES: Final = frozenset({"system", "user", "human", "customer", "client", "assistant", "gpt", "bot", "agent", "support", "tool"})
_OF_OTHER_TASKS: Final = ("prompt", "completion", "chosen", "rejected")
_PROMPTS: Final = ("prompt", "question", "instruction")
"""Of pairs of answers; without one, the prompt is what both begin with."""
_TOOLS: Final = ("tools", "functions")
_MAY_BELONG: Final = frozenset(
    {"system", "system_prompt", "system_message", "history", "context", "tools", "functions", "input", "images", "image", "documents"}
)
"""Names of columns that are part of what the model is asked."""
_WRITES_NOTHING: Final = "is an encoder, which writes no text"


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
    if broken := [name for name, column in columns.items() if column.kinds[:1] == ("text in no UTF-8",)]:
        raise CannotTellError(f"most texts in {', '.join(map(shown, broken))} are not UTF-8: save the file as UTF-8")
    context = Context(columns, data, model, wanted)
    for name in filter(None, (wanted.text, wanted.label)):
        if name not in columns:
            raise CannotTellError(f"there is no column {shown(name)}: the data have {described(columns)}")
    for rule in _rules(context):
        if (found := rule(context)) is not None:
            return _with_unread(with_optional(found, data), context)
    raise CannotTellError(_unknown(context))


def _with_unread(found: Guess, context: Context) -> Guess:
    """The guess with a note of the columns that may belong to it and that it does not read, unless it names them already.

    Of a table without a header, the first row is taken for one: that is told, too, where it can be seen.
    """
    told = " ".join(found.instead)
    filled = [name for name, column in context.columns.items() if column.longest_characters > len("[]") and name.lower() in _MAY_BELONG]
    unread = [name for name in filled if name not in {*found.columns, *found.optional} and shown(name) not in told]
    notes = (
        [f"not read: {', '.join(map(shown, unread))}. What of it the model needs has to be in the columns that are read"] if unread else []
    )
    if named := [name for name in found.columns if name in context.columns and name in context.columns[name].labels]:
        notes.append(f"{shown(named[0])} is a value of its own column, too: if the file has no header, write one as its first line")
    return replace(found, instead=(*found.instead, *notes))


def _nothing_in_common(data: Sequence[DataFacts]) -> str:
    if not any(one.columns for one in data):
        return f"the data {data[0].train} have no rows with columns: give a file that has some"
    listed = "; ".join(f"{one.train} has {described({column.name: column for column in one.columns})}" for one in data)
    return f"the files have no column in common: {listed}. Rename the columns of one, so that all sites have the same"


def _unknown(context: Context) -> str:
    known = "messages, conversations, instruction/output, prompt/completion, context/question/answers, text/label or text"
    advice = f"name the columns by --text and --label, or rename them to those of a known form ({known}; docs/task-formats.md)"
    of_model = f"; the model {_WRITES_NOTHING}, and so needs a column with labels" if not context.writes_text else ""
    return f"no task is known for these columns: {described(context.columns)}{of_model}: {advice}"


def _rules(context: Context) -> Sequence[_Rule]:
    """The rules in the order in which they are tried."""
    if context.wanted.label:
        return (head,)
    if context.wanted.text:
        return (named_head if context.writes_text else head, _plain_text)
    if not context.writes_text:
        return (refuse_compared, head, _preference, _conversations, _questions, _alpaca, _prompt_completion, _template, _plain_text)
    return (
        refuse_compared,
        refuse_graded,
        _preference,
        _conversations,
        _questions,
        _alpaca,
        _prompt_completion,
        _single_turns,
        named_head,
        _template,
        _text_with_a_group,
        head,
        _plain_text,
    )


def _preference(context: Context) -> Guess | None:
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


def _conversations(context: Context) -> Guess | None:
    others = {*_OF_OTHER_TASKS, *(("history",) if _input_and_output(context) else ())}  # what was said before an answer is none
    chats = [column for column in context.columns.values() if column.shape in {"messages", "turns"} and column.name not in others]
    if not chats:
        return None
    column = next((one for one in chats if one.name in {"messages", "conversations"}), chats[0])
    _require_chat_model(context.model, column)
    is_messages = column.shape == "messages"
    usual = "messages" if is_messages else "conversations"
    tools = next((name for name in _TOOLS if name in context.columns and context.columns[name].shape == "objects"), "")
    fields = {"type": "CausalLM", "format": "Messages" if is_messages else "ShareGPT"}
    fields |= {"messages": column.name} if column.name != usual else {}
    fields |= {"tools": tools} if tools else {}
    keys = "role and content" if is_messages else "from and value"
    more = [f"another column has conversations, too: messages: {shown(one.name)}" for one in chats if one is not column]
    why = f"{shown(column.name)} has lists of turns with {keys}: a chat, rendered by the model's own template. The assistant's turns count"
    columns = tuple(filter(None, (column.name, tools)))
    characters = sum(context.columns[name].longest_characters for name in columns)
    return Guess(fields, columns, why, tuple(more), characters=characters)


def _require_chat_model(model: ModelFacts, column: ColumnFacts) -> None:
    found = f"the column {shown(column.name)} has conversations"
    if model.kind in {"encoder", "encoder-decoder"}:
        what = _WRITES_NOTHING if model.kind == "encoder" else "is an encoder-decoder, which the chat formats are not for"
        raise CannotTellError(f"{found}, and the {model.architecture} model {what}: give a decoder that was trained for chat")
    if model.kind == "decoder" and not model.has_chat_template:
        advice = "give a model that was trained for chat, or add chat_template.jinja to its folder"
        raise CannotTellError(f"{found}, and the tokenizer of the {model.architecture} model has no chat template: {advice}")


def _questions(context: Context) -> Guess | None:
    if not context.is_there("context", "question") or "answers" not in context.columns:
        return None
    why = "context, question and answers, as SQuAD has them: the model writes the answer, which is compared with all of them"
    return _of_format(context, "QuestionAnswering", why)


def _alpaca(context: Context) -> Guess | None:
    extra = context.columns.get("input")
    has_input = extra is None or not extra.rows or is_text(extra)
    if not context.is_there("instruction", "output") or not has_input:
        return None
    return _of_format(context, "Alpaca", "instruction, input and output: rendered by the prompt of Stanford Alpaca. The output counts")


def _prompt_completion(context: Context) -> Guess | None:
    if not context.is_there("prompt", "completion"):
        return None
    return _of_format(context, "PromptCompletion", "prompt and completion, taken as they are. The completion counts")


def _of_format(context: Context, format_: str, why: str) -> Guess:
    fields = {"type": _language_task(context, why), "format": format_}
    names = FORMAT_COLUMNS[format_]
    characters = sum(context.columns[name].longest_characters for name in names if name in context.columns)
    return Guess(fields, names, f"the columns {why}", characters=characters)


def _language_task(context: Context, what: str) -> str:
    """The type of a task that writes text, by the model."""
    if not context.writes_text:
        advice = "give a decoder or an encoder-decoder, or name a column with labels by --label"
        raise CannotTellError(
            f"the data have {what.partition(':')[0]}, and the {context.model.architecture} model {_WRITES_NOTHING}: {advice}"
        )
    return "Seq2SeqLM" if context.model.kind == "encoder-decoder" else "CausalLM"


def _single_turns(context: Context) -> None:
    """Refuses rows that are a turn each, as chats are logged: a model that learns from them never sees a question with its answer."""
    texts = texts_of(context.columns.values())
    written = {label.casefold() for name, column in context.columns.items() if name.lower() in _WRITERS for label in column.labels}
    if not texts or len(written) < _BOTH or not written <= _ROLES:
        return
    writer = next(name for name in context.columns if name.lower() in _WRITERS)
    seen = f"{shown(writer)} says who wrote {shown(texts[0].name)}: each row is one turn, and no answer stands beside what it answers"
    advice = "make a row of each conversation, with a column messages that lists its turns as objects with role and content"
    raise CannotTellError(f"{seen}. To train answers, {advice}; to learn from the texts alone, give --text {shown(texts[0].name)}")


def _input_and_output(context: Context) -> tuple[str, str] | None:
    """Two columns of which the second is written for the first: by names that data sets use, or by words in the headers of a chat."""
    texts = [name for name, column in context.columns.items() if is_text(column) and _IN_TEMPLATES.fullmatch(name)]
    by_name = {name.lower(): name for name in reversed(texts)}  # of Question and question, the first
    for source, target in _INPUTS_AND_OUTPUTS:
        if source in by_name and target in by_name:
            return by_name[source], by_name[target]
    languages = [name for name in texts if _is_language(name)]
    if len(languages) == _BOTH:
        return languages[0], languages[1]
    sentences = {name: words_of(name) for name in texts if context.columns[name].share_of_sentences >= SENTENCES}
    asking = [name for name, words in sentences.items() if words & _ASKING and not words & _ANSWERING]
    answering = [name for name, words in sentences.items() if words & _ANSWERING and not words & _ASKING]
    return (asking[0], answering[0]) if len(asking) == len(answering) == 1 else None


def _is_language(name: str) -> bool:
    """Whether it is a text in an object of translations, by language, as data sets of a hub have them: `translation.de`."""
    return name.rpartition(".")[0] == "translation"


def _template(context: Context) -> Guess | None:
    pair = _input_and_output(context)
    if pair is None:
        return None
    source, target = pair
    type_ = _language_task(context, f"{source} and {target}")
    prompt = f"{{{source}}}" if type_ == "Seq2SeqLM" else f"{{{source}}}\n"
    fields = {"type": type_, "prompt": prompt, "response": f"{{{target}}}"}
    left_out = [name for name in text_names(context) if name not in pair]
    instead = (
        [f"no part of the prompt: {', '.join(map(shown, left_out))}. Add {{column}} to it where every row has a text there"]
        if left_out
        else []
    )
    if _is_language(target):
        instead.append(f"to translate into {shown(source)}, exchange prompt and response")
    why = f"{shown(target)} is written for {shown(source)}: templates over these columns. The response counts"
    characters = sum(context.columns[name].longest_characters for name in pair)
    return Guess(fields, pair, why, tuple(instead), characters=characters)


def _plain_text(context: Context) -> Guess | None:
    texts = [context.columns[context.wanted.text]] if context.wanted.text else texts_of(context.columns.values())
    label = context.columns.get("label")
    if texts and label is not None and label.rows and not context.wanted.text:
        problem_to_predict(label)  # it has none: it is not left out without a word
    if not texts or not is_text(texts[0]):
        return None
    if not context.wanted.text:
        _refuse_functions(context)
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


def _refuse_functions(context: Context) -> None:
    """Refuses texts beside functions to call: learnt as plain texts, they would teach no call.

    Raises:
        CannotTellError: there is a column of functions.
    """
    functions = next((name for name in _TOOLS if name in context.columns and context.columns[name].shape == "objects"), "")
    if functions:
        found = f"{shown(functions)} has functions that a model may call, and no column has conversations in which it does"
        advice = "make a column messages of each row, whose assistant's turns have tool_calls (docs/task-formats.md)"
        raise CannotTellError(f"{found}: {advice}; to learn from the texts alone, give --text COLUMN")


def _text_with_a_group(context: Context) -> Guess | None:
    """Texts with a column that is not named as labels are, such as a language or a score: for a decoder it describes them.

    What is true or false is a label, whatever its name.
    """
    groups = [column for column in context.columns.values() if problem_of(column)]
    is_told = any(column.kinds[:1] == ("boolean",) for column in groups) or len(flags_of(context)) > 1
    if context.model.kind != "decoder" or not groups or is_told:
        return None
    found = _plain_text(context)
    other = f"to predict {shown(groups[0].name)} instead: fedpipe init --label {shown(groups[0].name)}"
    return found and Guess(found.fields, found.columns, found.why, (other, *found.instead), characters=found.characters)

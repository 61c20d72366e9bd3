"""The learning objective: the type of task and the columns of the site's data that it reads."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fedpipe_trainer.contract.base import Wire

Column = Annotated[str, Field(min_length=1, max_length=253)]
Template = Annotated[str, Field(min_length=1, max_length=8192)]
MaxLength = Annotated[int, Field(ge=8, le=131072)]


Problem = Literal["SingleLabel", "MultiLabel", "Regression"]


class SequenceClassification(Wire):
    """Predict one label, any number of labels or a number for a text or a pair of texts. The head is trained, sent and averaged, too."""

    type: Literal["SequenceClassification"] = "SequenceClassification"
    text: Column = "text"
    text_pair: Column | None = None
    """The column with the second text of a pair; None: each sample is one text."""
    label: Column = "label"
    problem: Problem = "SingleLabel"
    """MultiLabel: the label column has a list of labels. Regression: it has a number, and the head one output."""
    labels: Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=10000)] = ()
    """Every label, in the order of the head's outputs. Empty in a profile task: the profile reports the labels that it finds. Empty
    for Regression."""
    drops_other_labels: bool = False
    """Whether rows with another label are left out and counted: the run declares no labels, and these are those that at least two sites
    have. False: the run's author declared them, and a row with another one is a mistake, which fails the task."""
    max_length: MaxLength = 256


TextFormat = Literal["Template", "Messages", "ShareGPT", "Alpaca", "PromptCompletion", "QuestionAnswering", "Text"]
"""What the rows of a language model's data are, by the names of TRL and LLaMA-Factory."""
PairFormat = Literal["Template", "Alpaca", "PromptCompletion", "QuestionAnswering"]
"""Those that give one input and one output text."""
CHAT_FORMATS: Final = frozenset({"Messages", "ShareGPT"})
"""Those whose rows are conversations, which the tokenizer's chat template renders."""
ALPACA_COLUMNS: Final = ("instruction", "input", "output")
PROMPT_COMPLETION_COLUMNS: Final = ("prompt", "completion")
QUESTION_COLUMNS: Final = ("context", "question", "answers")
FORMAT_COLUMNS: Final = {
    "Alpaca": ALPACA_COLUMNS,
    "PromptCompletion": PROMPT_COMPLETION_COLUMNS,
    "QuestionAnswering": QUESTION_COLUMNS,
}
"""Of the formats whose columns are given: these."""


def _check_templates(format_: str, *templates: str | None) -> None:
    """The format Template needs both templates, and no other has any."""
    if {template is not None for template in templates} != {format_ == "Template"}:
        raise ValueError("prompt and response belong to the format Template, which needs both")


class CausalLM(Wire):
    """Continue a prompt. Only tokens of the response, of the assistant's turns, or of a plain text count in the loss."""

    type: Literal["CausalLM"] = "CausalLM"
    format: TextFormat = "Template"
    prompt: Template | None = None
    """Of the format Template: a template over columns, `{column}`."""
    response: Template | None = None
    """Likewise."""
    messages: Column | None = None
    """Of a chat format: the column with the conversation; None: messages, and conversations for ShareGPT."""
    tools: Column | None = None
    """Of a chat format: the column with the functions that the assistant may call; None: no row has any."""
    text: Column = "text"
    """Of the format Text: the column with the text."""
    packing: bool = False
    """Of the format Text: whether texts are joined and cut into samples of `max_length`. False: each begins a sample of its own."""
    max_length: MaxLength = 512
    slot_pattern: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """A regular expression. In a prompt, its first group matches the values that a correct response must name (slot error rate)."""

    @property
    def conversation_column(self) -> str:
        """Of a chat format: the column with the conversation."""
        return self.messages or ("conversations" if self.format == "ShareGPT" else "messages")

    @model_validator(mode="after")
    def _require_templates(self) -> Self:
        _check_templates(self.format, self.prompt, self.response)
        return self


class Seq2SeqLM(Wire):
    """Rewrite a source text into a target text with an encoder-decoder model."""

    type: Literal["Seq2SeqLM"] = "Seq2SeqLM"
    format: PairFormat = "Template"
    prompt: Template | None = None
    response: Template | None = None
    max_length: MaxLength = 512
    slot_pattern: Annotated[str, Field(min_length=1, max_length=1024)] | None = None

    @model_validator(mode="after")
    def _require_templates(self) -> Self:
        _check_templates(self.format, self.prompt, self.response)
        return self


class Preference(Wire):
    """Prefer the chosen one of two answers to the rejected one, by more than the base does (DPO, arXiv 2305.18290). A sample is a pair.

    The answers are texts, or lists of messages, which the tokenizer's chat template renders.
    """

    type: Literal["Preference"] = "Preference"
    prompt_column: Column | None = None
    """The column with the prompt; None: it is what both answers begin with."""
    chosen_column: Column = "chosen"
    rejected_column: Column = "rejected"
    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """How much a difference in log-probability counts as reward."""
    max_length: MaxLength = 512
    """Of a prompt with one answer."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(column for column in (self.prompt_column, self.chosen_column, self.rejected_column) if column)


Objective = Annotated[SequenceClassification | CausalLM | Seq2SeqLM | Preference, Field(discriminator="type")]


def prompt_budget(max_length: int, response: int) -> int:
    """Tokens of a prompt to keep, at most: what a response of so many leaves of `max_length`, but at least half of it."""
    return max(max_length - response, max_length // 2)

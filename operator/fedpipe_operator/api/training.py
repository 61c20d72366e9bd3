"""`spec.task`, `spec.training` and `spec.evaluation`: what the model learns, how each site trains, and how the result is evaluated.

These types are the API's own. The wire format to the trainer (`fedpipe_trainer.contract`) has separate types, and
`fedpipe_operator.conversion` is the only module that converts between them.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fedpipe_operator.api.meta import ApiModel

Bits = Literal[4, 8, 16, 32]
"""Bit width of the frozen base model's weights."""

Column = Annotated[str, Field(min_length=1, max_length=253)]
Template = Annotated[str, Field(min_length=1, max_length=8192)]
MaxLength = Annotated[int, Field(ge=8, le=131072)]
BleuTokenizer = Literal["13a", "intl", "zh", "ja-mecab", "char"]
SlotPattern = Annotated[str, Field(min_length=1, max_length=1024)]


class Problem(StrEnum):
    """What is predicted for a text or a pair of texts."""

    SINGLE_LABEL = "SingleLabel"
    MULTI_LABEL = "MultiLabel"
    """Any number of the declared labels: the label column has a list."""
    REGRESSION = "Regression"
    """A number."""


class SequenceClassificationTask(ApiModel):
    """Predict a label, any number of labels or a number for a text or a pair of texts. The head is trained, uploaded and averaged too."""

    type: Literal["SequenceClassification"] = "SequenceClassification"
    text: Column = "text"
    text_pair: Column | None = None
    """The column with the second text of a pair, as in natural language inference; left out: each sample is one text."""
    label: Column = "label"
    problem: Problem = Problem.SINGLE_LABEL
    labels: Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=10000)] = ()
    """Every label, in the order of the head's outputs: at least two. A row with another one is an error. Empty: those that the profiles of
    at least two sites name (of a single site, its own), sorted; rows with another one are left out and counted."""
    max_length: MaxLength = 256

    @property
    def has_right_answers(self) -> bool:
        """Whether an answer is right or wrong, and nothing between."""
        return self.problem is not Problem.REGRESSION

    @model_validator(mode="after")
    def _require_labels_of_the_problem(self) -> Self:
        if self.problem is Problem.MULTI_LABEL and not self.labels:
            raise ValueError("the problem MultiLabel needs labels: declare all of them")
        if self.problem is Problem.REGRESSION and self.labels:
            raise ValueError("a Regression predicts a number and has no labels: remove them, or change the problem")
        return self


class TextFormat(StrEnum):
    """What the rows of a language model's data are."""

    TEMPLATE = "Template"
    """`prompt` and `response` are templates over columns."""
    MESSAGES = "Messages"
    """A column of messages with `role` and `content`, as of OpenAI and TRL, which the tokenizer's chat template renders."""
    SHARE_GPT = "ShareGPT"
    """A column of turns with `from` and `value`."""
    ALPACA = "Alpaca"
    """The columns instruction, input and output, with the prompt of Stanford Alpaca."""
    PROMPT_COMPLETION = "PromptCompletion"
    """The columns prompt and completion, as they are."""
    QUESTION_ANSWERING = "QuestionAnswering"
    """The columns context, question and answers, as of SQuAD; the answer is generated."""
    TEXT = "Text"
    """A column of plain texts, of which every token counts: continued pre-training."""


CHAT_FORMATS = frozenset({TextFormat.MESSAGES, TextFormat.SHARE_GPT})
_TEXT_COLUMN: Final = "text"
PAIR_FORMATS = frozenset({TextFormat.TEMPLATE, TextFormat.ALPACA, TextFormat.PROMPT_COMPLETION, TextFormat.QUESTION_ANSWERING})
"""Those with one input and one output text."""


class CausalLMTask(ApiModel):
    """Continue a prompt, answer in a conversation, or go on with plain text, by `format`.

    Of a conversation only the assistant's turns count in the loss, of a prompt and a response only the response.
    """

    type: Literal["CausalLM"] = "CausalLM"
    format: TextFormat = TextFormat.TEMPLATE
    prompt: Template | None = None
    response: Template | None = None
    messages: Column | None = None
    """The column with the conversation; left out: messages, and conversations for ShareGPT."""
    tools: Column | None = None
    """The column with the functions that the assistant may call; left out: none."""
    text: Column = _TEXT_COLUMN
    """The column with the plain text."""
    packing: bool = False
    """Whether plain texts are joined and cut into samples of `maxLength`; otherwise each begins a sample of its own."""
    max_length: MaxLength = 512
    slot_pattern: SlotPattern | None = None
    """A regular expression whose first group matches, in a prompt, the values that a good response must contain (slot error rate)."""

    @property
    def has_right_answers(self) -> bool:
        """Whether an answer is right or wrong: of a generated text it is not said."""
        return False

    @model_validator(mode="after")
    def _require_fields_of_the_format(self) -> Self:
        _check_templates(self.format, self.prompt, self.response)
        if self.format not in CHAT_FORMATS and (self.messages or self.tools):
            raise ValueError("messages and tools belong to the formats Messages and ShareGPT: remove them, or change the format")
        if self.format is not TextFormat.TEXT and (self.text != _TEXT_COLUMN or self.packing):
            raise ValueError("text and packing belong to the format Text: remove them, or change the format")
        if self.format not in PAIR_FORMATS - {TextFormat.QUESTION_ANSWERING} and self.slot_pattern:
            raise ValueError("slotPattern belongs to the formats Template, Alpaca and PromptCompletion: remove it, or change the format")
        return self


class Seq2SeqLMTask(ApiModel):
    """Rewrite a source text into a target text with an encoder-decoder, by `format`."""

    type: Literal["Seq2SeqLM"] = "Seq2SeqLM"
    format: TextFormat = TextFormat.TEMPLATE
    prompt: Template | None = None
    response: Template | None = None
    max_length: MaxLength = 512
    slot_pattern: SlotPattern | None = None
    """As in `CausalLMTask`."""

    @property
    def has_right_answers(self) -> bool:
        """Whether an answer is right or wrong: of a generated text it is not said."""
        return False

    @model_validator(mode="after")
    def _require_fields_of_the_format(self) -> Self:
        if self.format not in PAIR_FORMATS:
            raise ValueError(
                "Seq2SeqLM has the formats Template, Alpaca, PromptCompletion and QuestionAnswering: use one of them, or the type CausalLM"
            )
        _check_templates(self.format, self.prompt, self.response)
        return self


def _check_templates(format_: TextFormat, prompt: str | None, response: str | None) -> None:
    if format_ is TextFormat.TEMPLATE and (prompt is None or response is None):
        raise ValueError("the format Template needs prompt and response: add both, templates over columns such as {text}, or name a format")
    if format_ is not TextFormat.TEMPLATE and (prompt is not None or response is not None):
        raise ValueError(f"prompt and response belong to the format Template: remove them, since {format_.value} has its own columns")


class PreferenceTask(ApiModel):
    """Prefer the chosen one of two answers to a prompt (DPO, arXiv 2305.18290), by more than the base without the adapter does.

    Prompt and answers are texts, or lists of messages, which the tokenizer's chat template renders.
    """

    type: Literal["Preference"] = "Preference"
    prompt_column: Column | None = None
    """The column with the prompt; left out: it is what both answers begin with."""
    chosen_column: Column = "chosen"
    """The column with the better answer."""
    rejected_column: Column = "rejected"
    """The column with the worse answer."""
    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """How much a difference in log-probability counts as reward: the larger, the closer the model stays to the base."""
    max_length: MaxLength = 512
    """Tokens of a prompt with one answer, at most."""

    @property
    def has_right_answers(self) -> bool:
        """Whether an answer is right or wrong: the chosen one is right."""
        return True

    @model_validator(mode="after")
    def _require_different_columns(self) -> Self:
        columns = [self.prompt_column, self.chosen_column, self.rejected_column]
        if len(set(columns)) < len(columns):
            raise ValueError("promptColumn, chosenColumn and rejectedColumn are different columns: correct the one that is named twice")
        return self


TaskSpec = Annotated[SequenceClassificationTask | CausalLMTask | Seq2SeqLMTask | PreferenceTask, Field(discriminator="type")]


def longest_sample(task: TaskSpec) -> int:
    """Tokens of a sample, at most: a pair has two answers, each with its prompt."""
    return 2 * task.max_length if isinstance(task, PreferenceTask) else task.max_length


class Scaling(StrEnum):
    """How the scale of an adapter's product B·A follows from alpha and the rank."""

    CLASSIC = "Classic"
    """alpha / r (Hu et al., arXiv 2106.09685)."""
    RSLORA = "RsLoRA"
    """alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732)."""


class LearningRateSchedule(StrEnum):
    """How the learning rate changes from round to round. Within a round it is constant, after the warm-up."""

    CONSTANT = "Constant"
    COSINE = "Cosine"
    """It falls along a half cosine towards a tenth of it (after Loshchilov and Hutter, arXiv 1608.03983)."""


class TrainingSpec(ApiModel):
    """How the sites train."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """AdamW's in round 1, after the warm-up; left out: chosen by a short test at the sites. A change counts from the next round on."""
    learning_rate_schedule: LearningRateSchedule | None = None
    """How the learning rate changes from round to round; left out: Cosine. A change counts from the next round on."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0, le=100000)] = 0
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    proximal_mu: Annotated[float, Field(ge=0, le=10)] = 0.0
    """FedProx's mu (arXiv 1812.06127): each site's loss gets mu/2 times the squared distance of what it trains from what the round starts
    from. For sites whose data differ; costs 4 bytes of memory for each trained parameter. 0: off. A change counts from the next round
    on."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gradient_checkpointing: bool | None = None
    """Whether activations are recomputed in the backward pass to save memory; left out: the planner decides for each site."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over a site's data in each round, at most; left out: the planner decides."""
    max_steps: Annotated[int, Field(ge=1, le=1000000)] | None = None
    """Optimiser steps in each round, at most."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 16.0
    scaling: Scaling | None = None
    """How the scale of an adapter's product B·A follows from alpha and the rank; left out: RsLoRA."""


class EvaluationSpec(ApiModel):
    """How much of the validation data is used, and how much of it may leave the site."""

    max_samples: Annotated[int, Field(ge=1, le=1000000)] = 1000
    generations: Annotated[int, Field(ge=0, le=10000)] = 32
    """Distinct prompts that the model answers for BLEU, ROUGE-L and slot error rate (generation tasks only)."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    bleu_tokenizer: BleuTokenizer = "13a"
    """How BLEU finds words, by sacrebleu's name: `13a` for languages with Latin script; intl, zh, ja-mecab or char for others."""
    samples: Annotated[int, Field(ge=0, le=20)] = 0
    """Validation rows that leave the site in the result, each with its prediction."""

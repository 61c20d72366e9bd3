"""The learning objective: the type of task and the columns of the site's data that it reads."""

from typing import Annotated, Literal

from pydantic import Field

from fedpipe_trainer.contract.base import Wire

Column = Annotated[str, Field(min_length=1, max_length=253)]
Template = Annotated[str, Field(min_length=1, max_length=8192)]
MaxLength = Annotated[int, Field(ge=8, le=131072)]


class SequenceClassification(Wire):
    """Predict one label for a text. The classification head is trained, sent and averaged, too."""

    type: Literal["SequenceClassification"] = "SequenceClassification"
    text: Column = "text"
    label: Column = "label"
    labels: Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=10000)] = ()
    """Every label, in the order of the head's outputs. Empty in a profile task: the profile reports the labels that it finds."""
    drops_other_labels: bool = False
    """Whether rows with another label are left out and counted: the run declares no labels, and these are those that at least two sites
    have. False: the run's author declared them, and a row with another one is a mistake, which fails the task."""
    max_length: MaxLength = 256


class CausalLM(Wire):
    """Continue a prompt. `prompt` and `response` are templates over columns, `{column}`; only tokens of the response count in the loss."""

    type: Literal["CausalLM"] = "CausalLM"
    prompt: Template
    response: Template
    max_length: MaxLength = 512
    slot_pattern: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """A regular expression. In a prompt, its first group matches the values that a correct response must name (slot error rate)."""


class Seq2SeqLM(Wire):
    """Rewrite a source text into a target text with an encoder-decoder model. Both texts are templates over columns."""

    type: Literal["Seq2SeqLM"] = "Seq2SeqLM"
    prompt: Template
    response: Template
    max_length: MaxLength = 512
    slot_pattern: Annotated[str, Field(min_length=1, max_length=1024)] | None = None


Objective = Annotated[SequenceClassification | CausalLM | Seq2SeqLM, Field(discriminator="type")]

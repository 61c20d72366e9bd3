"""What is learned: the kind of task and which columns of the site's data it reads (`spec.task` of a run)."""

from typing import Annotated, Literal

from pydantic import Field

from fedpipe_trainer.contract.base import Wire

Column = Annotated[str, Field(min_length=1, max_length=253)]
Template = Annotated[str, Field(min_length=1, max_length=8192)]
MaxLength = Annotated[int, Field(ge=8, le=131072)]


class SequenceClassification(Wire):
    """One label for a text. The classification head is trained, sent and averaged too."""

    type: Literal["SequenceClassification"] = "SequenceClassification"
    text: Column = "text"
    label: Column = "label"
    labels: Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=10000)] = ()
    """Every label, in the order of the head's outputs; empty in a spec means: the union of what the sites' profiles found."""
    max_length: MaxLength = 256


class CausalLM(Wire):
    """Continue a prompt. `prompt` and `response` are templates over columns, `{column}`; the loss is on the response only."""

    type: Literal["CausalLM"] = "CausalLM"
    prompt: Template
    response: Template
    max_length: MaxLength = 512
    slot_pattern: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """A regular expression whose first group finds, in a prompt, the values a good response must name (slot error rate)."""


class Seq2SeqLM(Wire):
    """Rewrite a source text into a target text with an encoder-decoder. Both are templates over columns."""

    type: Literal["Seq2SeqLM"] = "Seq2SeqLM"
    prompt: Template
    response: Template
    max_length: MaxLength = 512
    slot_pattern: Annotated[str, Field(min_length=1, max_length=1024)] | None = None


Objective = Annotated[SequenceClassification | CausalLM | Seq2SeqLM, Field(discriminator="type")]

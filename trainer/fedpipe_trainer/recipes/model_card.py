"""The model card (README.md) of an export: what it is, what it comes from, how it is loaded and served. It quotes no data. Pure."""

import json
from typing import Final, NamedTuple

from fedpipe_trainer.adapters.export import BaseName
from fedpipe_trainer.contract import Objective, Provenance, SequenceClassification

CARD: Final = "README.md"
MAX_BYTES: Final = 1 << 20
_AUTO: Final = {
    "CausalLM": "AutoModelForCausalLM",
    "Preference": "AutoModelForCausalLM",
    "Seq2SeqLM": "AutoModelForSeq2SeqLM",
    "SequenceClassification": "AutoModelForSequenceClassification",
}
_PIPELINE: Final = {
    "CausalLM": "text-generation",
    "Preference": "text-generation",
    "Seq2SeqLM": "text2text-generation",
    "SequenceClassification": "text-classification",
}
_LONGEST: Final = 500
"""Labels and lines of a plan that the card lists, at most; characters of a metric's name."""


class _Use(NamedTuple):
    """How the folder is used."""

    library: str
    title: str
    loading: str
    serving: str


def adapter_card(base: BaseName, objective: Objective, provenance: Provenance, *, has_whole_modules: bool = False) -> str:
    """The card of the PEFT folder, which may have modules of the base that were trained whole.

    A base on a claim or in a bucket has no name that transformers loads: the reader says where a copy is.
    """
    revision = f", revision={base.revision!r}" if base.revision else ""
    is_elsewhere = "://" in base.name
    base_line = f'base_folder = "BASE"  # where you have {base.name}\n' if is_elsewhere else ""
    loading = f"""from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer, {_AUTO[objective.type]}

folder = "export/adapter"
{base_line}config = AutoConfig.from_pretrained(folder)
base = {_AUTO[objective.type]}.from_pretrained(
    {"base_folder" if is_elsewhere else repr(base.name)}, config=config, ignore_mismatched_sizes=True{revision}
)
model = PeftModel.from_pretrained(base, folder)
tokenizer = AutoTokenizer.from_pretrained(folder)"""
    serving = f"vLLM: `vllm serve {'BASE' if is_elsewhere else base.name} --enable-lora --lora-modules NAME=FOLDER`."
    if has_whole_modules:
        serving = "vLLM loads no adapter with modules that were trained whole, as this one has: serve the merged model."
    return _card(base, objective, provenance, _Use("peft", "LoRA adapter", loading, serving))


def merged_card(base: BaseName, objective: Objective, provenance: Provenance) -> str:
    """The card of the merged model."""
    loading = f"""from transformers import AutoTokenizer, {_AUTO[objective.type]}

folder = "export/merged"
model = {_AUTO[objective.type]}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)"""
    return _card(base, objective, provenance, _Use("transformers", "Merged model", loading, "vLLM: `vllm serve FOLDER`."))


def _card(base: BaseName, objective: Objective, provenance: Provenance, use: _Use) -> str:
    lines = [
        *_front_matter(base, objective, use.library),
        f"# {use.title}, fine-tuned by FedPipe",
        "",
        f"Base model: `{base.name}`{f' at revision `{base.revision}`' if base.revision else ''}. Task: {objective.type}.",
        *_labels(objective),
        "",
        "## Where it comes from",
        "",
        f"{provenance.rounds} rounds of federated fine-tuning at {len(provenance.sites)} sites"
        + (f" ({', '.join(provenance.sites)})" if provenance.sites else "")
        + ". Their data did not leave them, and nothing of it is in this card; an adapter may have memorised rows it was trained on.",
        "",
        *_metrics(provenance),
        *_plan(provenance),
        "## How to load it",
        "",
        f"```python\n{use.loading}\n```",
        *_by_hand(base, use.library),
        *([] if isinstance(objective, SequenceClassification) else ["", use.serving]),
        "",
    ]
    return "\n".join(lines).encode()[:MAX_BYTES].decode(errors="ignore")


def _by_hand(base: BaseName, library: str) -> list[str]:
    """Why peft's automatic classes do not load the adapter, where its base has no name that they find."""
    if library != "peft" or "://" not in base.name:
        return []
    return ["", f"`AutoPeftModelFor…` does not find the base, which the adapter names `{base.name}`: load it yourself, as above."]


def _front_matter(base: BaseName, objective: Objective, library: str) -> list[str]:
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {_PIPELINE[objective.type]}", "tags: [federated-learning, lora, fedpipe]"]
    is_on_a_hub = base.name.count("/") == 1 and "://" not in base.name and not base.name.startswith("/")
    return [*lines, *([f"base_model: {json.dumps(base.name)}"] if is_on_a_hub else []), "---", ""]


def _labels(objective: Objective) -> list[str]:
    if not isinstance(objective, SequenceClassification):
        return []
    return ["", f"{len(objective.labels)} labels, in the order of the outputs: see `id2label` in `config.json`."]


def _metrics(provenance: Provenance) -> list[str]:
    """A table of the metrics, as averaged over the sites."""
    if not provenance.metrics:
        return []
    rows = [
        f"| {name[:_LONGEST]} | {_figure(provenance.base_metrics.get(name))} | {_figure(value)} |"
        for name, value in sorted(provenance.metrics.items())
    ]
    return ["| metric, averaged over the sites' validation data | base | this model |", "|---|---|---|", *rows, ""]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _plan(provenance: Provenance) -> list[str]:
    return (
        ["What each site trained in the last round:", "", *(f"* {line}" for line in provenance.plan[:_LONGEST]), ""]
        if provenance.plan
        else []
    )

"""A task: all the information that a trainer gets. It needs no credentials and no API beside it.

URLs are `file://` or `http(s)://`; an `http(s)://` URL is presigned for exactly one object and one HTTP method, and so is a form.
"""

import json
import re
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from fedpipe_trainer.contract.base import SCHEMA_VERSION, Wire
from fedpipe_trainer.contract.codec import Codec
from fedpipe_trainer.contract.objective import Objective
from fedpipe_trainer.contract.plan import Bits, Plan, Scaling
from fedpipe_trainer.contract.policy import DataPolicy, DataUse


class ImportanceMethod(StrEnum):
    """How a site scores the importance of each weight for its own data."""

    GRADIENT = "Gradient"
    """The mean of |W · dL/dW| over the weight's elements, from the gradients of a few batches before training (GoRA)."""
    SENSITIVITY = "Sensitivity"
    """The paper's SVD and sensitivity score (AdaLoRA, arXiv 2303.10512), after a short warm-up."""
    NONE = "None"
    """Every weight counts the same."""


Url = Annotated[str, Field(pattern=r"^(file|https?)://", max_length=8192)]
"""To read, or to PUT."""
PROBE_BYTES: Final = 8 << 20
"""The largest object that a profile writes to measure the bandwidth."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
COMMIT_PATTERN: Final = r"^[0-9a-f]{40}$"
Commit = Annotated[str, Field(pattern=COMMIT_PATTERN)]
"""A commit of a model hub's repository."""
ETAG_PATTERN: Final = r"^[0-9a-f]{32}(-[1-9][0-9]{0,4})?$"
"""An MD5, and of an upload in parts the number of these."""
LearningRate = Annotated[float, Field(gt=0, le=1)]
MAX_RATES: Final = 32
"""Learning rates in a range test."""
MAX_RANGE_TEST_SAMPLES: Final = 1000
"""Validation samples that a range test may use at a site: so much weight has a site's word in the choice, at most."""
Processes = Annotated[int, Field(ge=1, le=16)]
"""Among which the optimiser steps of a task are divided: one for each GPU of its pod."""


class PostForm(Wire):
    """A presigned form: a POST of these fields and then the file writes one object, whose key and size the form's policy binds."""

    url: Annotated[str, Field(pattern=r"^https?://", max_length=8192)]
    fields: Annotated[dict[str, str], Field(max_length=32, repr=False)]
    """They name the key, and are signed: a form is a credential as a presigned URL is."""


Upload = Url | PostForm
"""How an object is written: by PUT where the store has no forms, or none that bind the size."""


LEAST_PART_BYTES: Final = 5 << 20
"""Of a part that is not the last one, as S3 has it."""
MAX_PARTS: Final = 10_000


class PartsUpload(Wire):
    """An upload in parts that was begun: it survives a cut connection, and the trainer's end. Its URLs bind the object and this upload."""

    part_bytes: Annotated[int, Field(ge=LEAST_PART_BYTES)]
    """Of every part but the last."""
    parts: Annotated[tuple[Url, ...], Field(min_length=1, max_length=MAX_PARTS, repr=False)]
    """To PUT each part, from the first: as many as a file of the greatest size has."""
    listing: Annotated[Url, Field(repr=False)]
    """To GET which parts have arrived."""
    finish: Annotated[Url, Field(repr=False)]
    """To POST the list of parts, which makes them the object."""
    object: Annotated[Url, Field(repr=False)]
    """To GET the object: whether an earlier attempt has finished the upload."""


LEAST_PIECE_BYTES: Final = 256 << 10
MAX_PIECES: Final = 256


class PiecesUpload(Wire):
    """A file that is written in pieces, which are objects of their own: a cut connection costs one piece. S3's own parts have 5 MiB."""

    piece_bytes: Annotated[int, Field(ge=LEAST_PIECE_BYTES)]
    """Of every piece but the last."""
    pieces: Annotated[tuple[Upload, ...], Field(min_length=1, max_length=MAX_PIECES, repr=False)]
    """How each piece is written, from the first: as many as a file of the greatest size has."""


FileUpload = Url | PartsUpload
"""How a file of an export is written: in parts where it is large and the store has them."""
MAX_EXPORT_FILES: Final = 4096
MAX_FILE_BYTES: Final = 1 << 42
FILE_NAME: Final = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$"
"""Of a file of an export: a name, or one in a folder. No part of it is empty or begins with a dot or a dash."""


class ExportFile(Wire):
    """A file that an export writes."""

    name: Annotated[str, Field(pattern=FILE_NAME)]
    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    """Bytes, at most."""


ExportFiles = Annotated[tuple[ExportFile, ...], Field(max_length=MAX_EXPORT_FILES)]
ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
"""Of what an export of the adapter writes, what makes it an adapter."""


class RunRef(Wire):
    """The run that a task belongs to."""

    namespace: str
    name: str
    uid: str


Attention = Literal["eager", "sdpa"]
"""How attention is computed, as transformers names it: each score as a value of its own, or by torch's fused kernels."""


class Model(Wire):
    """The frozen base model: a local folder, a hub repository at a revision, or files at URLs."""

    source: Annotated[str, Field(pattern=r"^(file:///|hf://|s3://).+", max_length=4096)]
    files: dict[str, Url] = {}
    """For `s3://`: the URL of each file in the model's folder."""
    sizes: dict[str, Annotated[int, Field(ge=0)]] = {}
    """For `s3://`: the bytes of each file, as the bucket lists them."""
    etags: dict[str, Annotated[str, Field(pattern=ETAG_PATTERN)]] = {}
    """For `s3://`: the ETag of each file that may be an MD5: of its content, or after an upload in parts of the MD5s of these. It is none
    where the bucket encrypts with a key of its user; that all sites have the same content is what the fingerprint says."""
    revision: Sha256 | None = None
    """For `s3://`: changes whenever one of the files changes, so that an outdated download is not used."""
    fingerprint: Sha256 | None = None
    """The fingerprint that the base model must have at every site (from the run's profiles). The task fails if it differs."""
    commit: Commit | None = None
    """For `hf://`: the commit that the run's sites use, as its branch or tag may have moved since they were profiled. None: what the
    source names now."""
    attn_implementation: Attention | None = None
    """How the sites' trainers compute attention. None: as transformers chooses for the architecture."""
    modules_to_save: tuple[str, ...] = ()
    """Ends of the names of modules that are trained whole, beside the adapters, as PEFT's `modules_to_save`."""

    @model_validator(mode="after")
    def _require_the_commit_that_the_source_names(self) -> Self:
        named = self.source.partition("@")[2]
        if self.commit is not None and not self.source.startswith("hf://"):
            raise ValueError(f"commit {self.commit} is given, but {self.source} does not come from a hub")
        if self.commit is not None and re.match(COMMIT_PATTERN, named) and named != self.commit:
            raise ValueError(f"{self.source} names another commit than {self.commit}, which the run uses: start the run over")
        return self


class Data(Wire):
    """The site's private data: paths of files or folders on the machine where the task runs."""

    train: Annotated[str, Field(min_length=1, max_length=4096)]
    validation: Annotated[str, Field(min_length=1, max_length=4096)]


class GlobalAdapter(Wire):
    """The aggregated adapter that a task starts from. The scale is part of its factors: a weight changes by B·A."""

    url: Url
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class Hyperparameters(Wire):
    """How a site trains."""

    learning_rate: LearningRate = 2e-4
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0, le=100000)] = 0
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    proximal_mu: Annotated[float, Field(ge=0, le=10)] = 0.0
    """FedProx's mu: the loss gets mu/2 · ‖w − w₀‖², w₀ being what the round starts from. 0: there is no such term."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0: it rises linearly to its full value in the last of the warm-up steps."""
        return self.learning_rate * warm_up(step, self.warmup_steps)


def warm_up(step: int, warmup_steps: int) -> float:
    """The fraction of the learning rate in a step, from 0."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def effective_steps(steps: int, warmup_steps: int) -> float:
    """Σ of the fractions of the learning rate over these steps: how far they move an adapter, in steps at the full rate."""
    return sum(warm_up(step, warmup_steps) for step in range(min(steps, warmup_steps))) + max(0, steps - warmup_steps)


BleuTokenizer = Literal["13a", "intl", "zh", "ja-mecab", "char"]
"""sacrebleu's ways to find the words of a text."""


class Evaluation(Wire):
    """How much of the validation data is used, and how many of its rows the result may contain."""

    max_samples: Annotated[int, Field(ge=1, le=1000000)] = 1000
    generations: Annotated[int, Field(ge=0, le=10000)] = 32
    """Distinct prompts for which a text is generated to compute BLEU, ROUGE-L and the slot error rate (CausalLM and Seq2SeqLM only)."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    bleu_tokenizer: BleuTokenizer = "13a"
    samples: Annotated[int, Field(ge=0, le=20)] = 0
    """Validation rows that leave the site in the result, with their predictions. 0 unless the run requests them."""


class _TaskBase(Wire):
    schema_version: Literal[1] = SCHEMA_VERSION
    run: RunRef
    site: str
    round: Annotated[int, Field(ge=0)] = 0
    attempt: Annotated[int, Field(ge=0)] = 0
    model: Model
    deadline_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds from the task's start by which it must have ended."""
    result: Upload
    """Where the result is written. It is written last."""
    progress: Upload | None = None
    """Where a `TaskProgress` is written while the task is performed. None: nowhere, since standard output tells it."""


class _SiteTask(_TaskBase):
    """A task that reads a site's data."""

    objective: Objective
    data: Data
    policy: DataPolicy = DataPolicy()
    """What the data owner allows, by the site's `EdgeSite`. The trainer adds what the policy file on the data volume says."""
    run_labels: dict[str, str] = {}
    """The labels of the run's object."""
    contributors: Annotated[int, Field(ge=1)] = 1
    """Sites, at least, of whose updates (of an evaluation task: evaluations) every result with this site's is made: the operator commits no
    round of fewer."""
    baseline_of: str = ""
    """The name of the run that this one compares with the site trained alone; empty for a run of several sites."""

    @property
    def use(self) -> DataUse:
        """What the task does with the site's data."""
        return DataUse(
            run=self.baseline_of or self.run.name,
            run_labels=self.run_labels,
            objective=self.objective,
            contributors=self.contributors,
            is_local_baseline=bool(self.baseline_of),
        )


class RangeTest(Wire):
    """A short test of learning rates: the validation loss after a few steps at each, from the same adapter and over the same batches."""

    learning_rates: Annotated[tuple[LearningRate, ...], Field(min_length=1, max_length=MAX_RATES)]
    """Ascending. They are tried from the middle on, in the direction in which the loss falls, until it gets worse."""
    steps: Annotated[int, Field(ge=1, le=1000)]
    """Optimiser steps at each rate."""
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    """Samples per optimiser step."""
    validation_samples: Annotated[int, Field(ge=1, le=MAX_RANGE_TEST_SAMPLES)]
    """Validation samples on which the loss is computed, at most."""
    seconds: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)]
    """After so many seconds no further step begins; a rate without all its steps counts as not tried."""
    hyperparameters: Hyperparameters
    """Those of the run. The rates replace its learning rate, and there is no warm-up."""
    scaling: Scaling = Scaling.RSLORA
    alpha: Annotated[float, Field(gt=0)] = 16.0


class Basis(Wire):
    """What a profile is made for, as hashes that the result repeats: so the operator sees whether the site has changed since."""

    measured: Annotated[str, Field(max_length=64)]
    """Of what the measurements depend on: the node pool and the data."""
    whole: Annotated[str, Field(max_length=64)]
    """Of the whole spec of the site, any part of which may be why a profile fails."""
    cache: Annotated[str, Field(max_length=64)] | None = None
    """Of the cache volume, on which what was found of it depends; empty without one. None: an earlier version made the profile."""


class ProfileTask(_SiteTask):
    """Measure the site: facts about the base model, labels, samples, memory, and tokens per second at each bit width."""

    kind: Literal["profile"] = "profile"
    bits: Annotated[tuple[Bits, ...], Field(min_length=1)]
    all_bits: bool = False
    """Whether fewer bits than 16 are measured even where memory suffices for more: the plan may take them all the same."""
    target_modules: tuple[str, ...] = ()
    """Suffixes of the names of modules that get adapters. Empty: the defaults of the model's architecture."""
    max_new_tokens: Annotated[int, Field(ge=0, le=4096)] = 0
    """Tokens that an evaluation generates after a prompt, at most, for which the model needs positions. 0: it generates none."""
    batch_sizes: tuple[int, ...] = (1, 4)
    rank: int = 8
    seed: int = 0
    importance: ImportanceMethod = ImportanceMethod.GRADIENT
    range_test: RangeTest | None = None
    """None: no learning rate is tested, because the run has one."""
    basis: Basis | None = None
    """Repeated in the result."""
    processes: Processes = 1
    """As those of the trainings that the profile is for."""
    reuse: bool = False
    """Whether an earlier profile in the site's cache, of the same model, data, machine and task, is used again instead of measuring."""
    probe_write: Upload | None = None
    """Where a test object is written, to measure the bandwidth to the store. None: it is not measured."""
    probe_read: Url | None = None
    """Where the same object is read back."""


EVALUATION_SHARE: Final = 0.5
"""Share of a training's deadline after which the evaluation before it is given up, so that there is time to train."""


class TrainEvaluation(Wire):
    """The evaluation of the global adapter that a training starts from, before its first step: an `EvaluateResult` of its own."""

    round: Annotated[int, Field(ge=0)]
    """The round of that adapter; 0: the base model."""
    evaluation: Evaluation
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    result: Upload
    """Where the `EvaluateResult` is written, before the first step."""


class TrainTask(_SiteTask):
    """Evaluate the global adapter if the task requests it, train for one round, and upload the update."""

    kind: Literal["train"] = "train"
    plan: Plan
    hyperparameters: Hyperparameters
    micro_batch: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Samples per micro-batch to begin with, when an earlier attempt ran out of memory. None: the plan's."""
    processes: Processes = 1
    """Each computes micro-batches of that size. The update is the same up to rounding, and, with dropout, to which values are dropped."""
    global_adapter: GlobalAdapter | None = None
    """None in round 1: the factors A are drawn from the seed, the factors B are zero."""
    evaluation: TrainEvaluation | None = None
    """None: nothing is evaluated, because an earlier attempt did or the run has the evaluation already."""
    validate_samples: Annotated[int, Field(ge=0)] = 0
    """Number of validation rows to compute `validationLoss` of the result on; 0: it is not computed."""
    adapter: Upload | PiecesUpload
    """In pieces where it is large and the store binds their sizes."""
    codec: Codec | None = None
    """How the update travels: its increment from what the training started from. None: the tensors as they are, in float32."""
    checkpoint_read: Url | None = None
    """Where an earlier attempt may have written a checkpoint."""
    checkpoint_write: Upload | None = None


class EvaluateTask(_SiteTask):
    """Evaluate the global adapter (or, without one, the base model) on the site's validation data."""

    kind: Literal["evaluate"] = "evaluate"
    bits: Bits
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    evaluation: Evaluation
    global_adapter: GlobalAdapter | None = None
    seed: int = 0


class Provenance(Wire):
    """What the model card says of an export: where it comes from, and nothing of anybody's data."""

    sites: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    """Those whose updates were aggregated in any round so far, sorted."""
    rounds: Annotated[int, Field(ge=0)] = 0
    metrics: dict[str, float] = {}
    """Of the exported round, as the run reports them: means over the sites."""
    base_metrics: dict[str, float] = {}
    """The same of the untouched base."""
    plan: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    """What each site trained, a sentence each."""


class _ExportTask(_TaskBase):
    objective: Objective
    source: Annotated[str, Field(max_length=4096)] = ""
    """The base model as the run names it, for adapter_config.json and the model card; "": as the task does."""
    shard_bytes: Annotated[int, Field(ge=1)] = 4 << 30
    """Of a file of weights, at most."""


class DryExportTask(_ExportTask):
    """Try the export on the untouched base, before any site trains: names, sizes, a zero adapter, loading. Only the result is written.

    The base's weights are not read, but for one tensor; of a base that is on no volume only the headers are fetched.
    """

    kind: Literal["dry-export"] = "dry-export"
    ranks: dict[str, Annotated[int, Field(ge=1)]]
    """By weight that may get an adapter: the largest rank."""
    adapter: bool = True
    merged: bool = True


class ExportTask(_ExportTask):
    """Write the global adapter as a PEFT folder and as a merged model. This needs no data.

    `adapter_files` and `merged_files` say by file name how it is written, as the dry export found them. If the export makes a file of
    another name, the task fails.
    """

    kind: Literal["export"] = "export"
    global_adapter: GlobalAdapter
    adapter_files: dict[str, FileUpload] = {}
    merged_files: dict[str, FileUpload] = {}
    provenance: Provenance = Provenance()


Task = Annotated[ProfileTask | TrainTask | EvaluateTask | DryExportTask | ExportTask, Field(discriminator="kind")]

_TASK: TypeAdapter[ProfileTask | TrainTask | EvaluateTask | DryExportTask | ExportTask] = TypeAdapter(Task)


def parse_task(text: str) -> ProfileTask | TrainTask | EvaluateTask | DryExportTask | ExportTask:
    """Read a task from JSON.

    Raises:
        ValueError: the text is not JSON, has a newer schema version, or does not fit the schema (the message says where).
    """
    document = json.loads(text)
    version = document.get("schemaVersion") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        msg = f"this task has schema version {version}, this trainer reads {SCHEMA_VERSION}: use a trainer image as new as the operator"
        raise ValueError(msg)
    return _TASK.validate_python(document)

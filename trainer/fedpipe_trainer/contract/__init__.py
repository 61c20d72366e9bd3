"""What travels between operator and trainer: a task in, a result out, both plain JSON.

This package is the wire format. It imports pydantic alone, so that the operator (which has no torch) and the
trainer (which has no Kubernetes client) both read it. `SCHEMA_VERSION` goes up whenever a reader of the old
form could misread the new one; a trainer refuses a task of a newer version by name.
"""

from fedpipe_trainer.contract.base import SCHEMA_VERSION, Wire
from fedpipe_trainer.contract.exits import ExitCode, FailureReason
from fedpipe_trainer.contract.objective import CausalLM, Objective, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.contract.plan import Bits, Forecast, Plan, Scaling, scale_of
from fedpipe_trainer.contract.progress import Ended, Progress
from fedpipe_trainer.contract.result import (
    Artifact,
    BaseModelFacts,
    EvaluateResult,
    ExportResult,
    Failure,
    Manifest,
    Measured,
    Outcome,
    ProfileResult,
    Sample,
    Throughput,
    TrainResult,
    WeightShape,
    parse_result,
    perplexity_of,
)
from fedpipe_trainer.contract.task import (
    Data,
    EvaluateTask,
    Evaluation,
    ExportTask,
    GlobalAdapter,
    Hyperparameters,
    Model,
    ProfileTask,
    RunRef,
    Task,
    TrainTask,
    parse_task,
)

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "BaseModelFacts",
    "Bits",
    "CausalLM",
    "Data",
    "Ended",
    "EvaluateResult",
    "EvaluateTask",
    "Evaluation",
    "ExitCode",
    "ExportResult",
    "ExportTask",
    "Failure",
    "FailureReason",
    "Forecast",
    "GlobalAdapter",
    "Hyperparameters",
    "Manifest",
    "Measured",
    "Model",
    "Objective",
    "Outcome",
    "Plan",
    "ProfileResult",
    "ProfileTask",
    "Progress",
    "RunRef",
    "Sample",
    "Scaling",
    "Seq2SeqLM",
    "SequenceClassification",
    "Task",
    "Throughput",
    "TrainResult",
    "TrainTask",
    "WeightShape",
    "Wire",
    "parse_result",
    "parse_task",
    "perplexity_of",
    "scale_of",
]

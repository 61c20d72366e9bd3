"""The API's types as the wire format's, field by field: the one place that knows both versions. Pure.

A field that is added to one side only changes nothing here; a field that both sides have is named here, so that the
two may be renamed, bounded or given defaults apart. Every field is passed, so the trainer's own defaults never apply.
"""

from typing import Final

from fedpipe_operator.api import (
    AttnImplementation,
    CausalLMTask,
    CodecSpec,
    DataPolicy,
    EvaluationSpec,
    Importance,
    PreferenceTask,
    Scaling,
    Seq2SeqLMTask,
    SequenceClassificationTask,
    TaskSpec,
    TrainingLosses,
    TrainingSpec,
)
from fedpipe_trainer import contract
from fedpipe_trainer.contract.task import Attention

_IMPORTANCE: Final = {
    Importance.GRADIENT: contract.ImportanceMethod.GRADIENT,
    Importance.SENSITIVITY: contract.ImportanceMethod.SENSITIVITY,
    Importance.NONE: contract.ImportanceMethod.NONE,
}
_TRAINING_LOSSES: Final = {
    TrainingLosses.BY_STEP: contract.TrainingLosses.BY_STEP,
    TrainingLosses.MEAN: contract.TrainingLosses.MEAN,
}
_ATTENTIONS: Final[dict[AttnImplementation, Attention]] = {AttnImplementation.EAGER: "eager", AttnImplementation.SDPA: "sdpa"}
_RANK: Final = 4
"""Of the codec LowRank."""
_FRACTION: Final = 0.05
"""Of the codec TopK."""
_SCALINGS: Final = {Scaling.CLASSIC: contract.Scaling.CLASSIC, Scaling.RSLORA: contract.Scaling.RSLORA}


def objective(task: TaskSpec, labels: tuple[str, ...] | None = None) -> contract.Objective:
    """`spec.task`.

    Args:
        task: the task of the run.
        labels: the labels that round 1 fixed for a classification; None before that: those that the spec names.
    """
    match task:
        case SequenceClassificationTask():
            known = task.labels if labels is None else labels
            return contract.SequenceClassification(
                text=task.text,
                text_pair=task.text_pair,
                label=task.label,
                problem=task.problem.value,
                labels=known,
                drops_other_labels=bool(known) and not task.labels,
                max_length=task.max_length,
            )
        case CausalLMTask():
            return contract.CausalLM(
                format=task.format.value,
                prompt=task.prompt,
                response=task.response,
                messages=task.messages,
                tools=task.tools,
                text=task.text,
                packing=task.packing,
                max_length=task.max_length,
                slot_pattern=task.slot_pattern,
            )
        case Seq2SeqLMTask():
            return contract.Seq2SeqLM(
                format=task.format.value,
                prompt=task.prompt,
                response=task.response,
                max_length=task.max_length,
                slot_pattern=task.slot_pattern,
            )
        case PreferenceTask():
            return contract.Preference(
                prompt_column=task.prompt_column,
                chosen_column=task.chosen_column,
                rejected_column=task.rejected_column,
                beta=task.beta,
                max_length=task.max_length,
            )


def hyperparameters(training: TrainingSpec, learning_rate: float) -> contract.Hyperparameters:
    """`spec.training`, but for what the planner turns into the plan: epochs, maxSteps, alpha, scaling and gradientCheckpointing.

    Args:
        training: of the run.
        learning_rate: of the round, by its plan.
    """
    return contract.Hyperparameters(
        learning_rate=learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_steps,
        max_grad_norm=training.max_grad_norm,
        proximal_mu=training.proximal_mu,
        dropout=training.dropout,
        seed=training.seed,
    )


def evaluation(spec: EvaluationSpec) -> contract.Evaluation:
    """`spec.evaluation`."""
    return contract.Evaluation(
        max_samples=spec.max_samples,
        generations=spec.generations,
        max_new_tokens=spec.max_new_tokens,
        bleu_tokenizer=spec.bleu_tokenizer,
        samples=spec.samples,
    )


def policy(spec: DataPolicy) -> contract.DataPolicy:
    """`spec.policy` of a site."""
    return contract.DataPolicy(
        runs=contract.RunSelector(names=spec.runs.names, match_labels=spec.runs.match_labels),
        columns=spec.columns,
        task_types=spec.task_types,
        labels=spec.labels,
        max_labels=spec.max_labels,
        max_shown_rows=spec.max_shown_rows,
        min_sites=spec.min_sites,
        local_baseline=spec.local_baseline,
        training_losses=_TRAINING_LOSSES[spec.training_losses],
    )


def codec(spec: CodecSpec) -> contract.Codec | None:
    """`spec.codec`; None if everything travels as it is."""
    if spec.is_plain:
        return None
    return contract.Codec(
        type=spec.type.value,
        downlink=spec.downlink.value,
        rank=_RANK if spec.rank is None else spec.rank,
        fraction=_FRACTION if spec.fraction is None else spec.fraction,
        error_feedback=spec.error_feedback,
        min_cosine=spec.min_cosine,
        max_relative_error=spec.max_relative_error,
    )


def attention(choice: AttnImplementation | None) -> Attention | None:
    """`spec.model.attnImplementation`."""
    return _ATTENTIONS[choice] if choice else None


def importance(choice: Importance) -> contract.ImportanceMethod:
    """`spec.planning.importance`."""
    return _IMPORTANCE[choice]


def scaling(choice: Scaling | None) -> contract.Scaling:
    """`spec.training.scaling`; left out: RsLoRA, because ranks differ by site and weight."""
    return _SCALINGS[choice or Scaling.RSLORA]

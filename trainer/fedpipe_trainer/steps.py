"""The parts of an optimiser step: gradients (in as many micro-batches as memory requires), the proximal term, clipping, AdamW.

Training and the profile share this code, so that the profile measures what training will do.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import torch
from transformers import PreTrainedModel

from fedpipe_trainer.adapters import Adapters
from fedpipe_trainer.contract import FailureReason, Hyperparameters, Objective
from fedpipe_trainer.data import Example, collate, count_targets
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.executable_batch_size import find_executable_batch_size
from fedpipe_trainer.losses import summed_loss
from fedpipe_trainer.model import Base, lower_part_in_evaluation_mode
from fedpipe_trainer.parallel import Piece, Session, divide, processes_of
from fedpipe_trainer.proximal import ProximalTerm

_NO_GRADIENT: Final = (
    "the loss has no gradient: no weight that is trained reaches it, because the layers above compute in integers or cut the gradient off; "
    "use another base model, allow 16 or 32 in planning.bits, or name other weights in planning.targetModules"
)


@contextmanager
def training_mode(model: PreTrainedModel, *, checkpointing: bool, lowest_layer: int = 0) -> Iterator[None]:
    """Put the model into training mode; at the end, back into evaluation mode.

    Args:
        model: the model.
        checkpointing: whether the backward pass recomputes the activations of each layer.
        lowest_layer: the lowest layer that is trained; all below it is computed in evaluation mode.

    Raises:
        TaskFailed: BadTask, transformers has no checkpointing for this architecture.
    """
    if checkpointing and not model.supports_gradient_checkpointing:
        msg = f"transformers cannot recompute the activations of a {model.config.model_type} model: set gradientCheckpointing to false"
        raise TaskFailed(FailureReason.BAD_TASK, msg)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # transformers makes the embeddings' output require a gradient, for reentrant checkpointing: the backward pass would go through
        # all layers, also below the lowest one that is trained, and in all later tasks of this process, since the hook stays.
        model.disable_input_require_grads()
    model.train()
    try:
        with lower_part_in_evaluation_mode(model, lowest_layer):
            yield
    finally:
        model.eval()
        if checkpointing:
            model.activation_checkpointing_disable()


def make_optimizer(hyper: Hyperparameters, adapters: Adapters) -> torch.optim.AdamW:
    """AdamW over the trainable parameters. Its state is allocated here, for measurements of memory and for `checkpoint.restore`."""
    parameters = list(adapters.trainable.values())
    optimizer = torch.optim.AdamW(parameters, lr=hyper.learning_rate, weight_decay=hyper.weight_decay, fused=True)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def compute_gradients(  # noqa: PLR0913 - a step, and who computes it
    examples: Sequence[Example],
    objective: Objective,
    base: Base,
    *,
    adapters: Adapters,
    micro_batch: int,
    session: Session | None = None,
    seed: int = 0,
) -> tuple[float, int]:
    """Compute the gradients of the mean loss over the examples' targets, in micro-batches that are halved whenever memory runs out.

    Args:
        examples: of the step.
        objective: of the task.
        base: the base of this process.
        adapters: attached to it; their trainable parameters get the gradients.
        micro_batch: samples at once at most, in each process.
        session: the processes among which the step is divided; None: this one computes it alone.
        seed: of the step's dropout, if it is divided.

    Returns:
        The mean loss, and the micro-batch size that fitted in memory, in every process.

    Raises:
        TaskFailed: OutOfMemory with a micro-batch of one sample; BadModel, no trained parameter receives a gradient; what a process of the
            session failed with.
    """
    targets = max(1, sum(count_targets(example, objective) for example in examples))
    compute = partial(accumulate_gradients, objective=objective, base=base, model=adapters.model, targets=targets)

    def accumulate(size: int) -> float:
        for parameter in adapters.trainable.values():
            parameter.grad = None
        pieces = divide(examples, size, processes_of(session), seed)
        return (session.accumulate(pieces, targets, compute) if session else compute(pieces)) / targets

    return find_executable_batch_size(accumulate, micro_batch, longest=max(len(example.input_ids) for example in examples))


def optimizer_step(
    optimizer: torch.optim.Optimizer, *, learning_rate: float, max_grad_norm: float, proximal: ProximalTerm | None = None
) -> float:
    """Add the proximal term, clip the gradients and take one optimiser step, unless the gradient norm is not finite.

    Args:
        optimizer: over the parameters whose gradients are those of the step's data.
        learning_rate: of the step.
        max_grad_norm: to which the gradients are clipped.
        proximal: the term; None: there is none.

    Returns:
        The norm before clipping, of the gradients with the term.
    """
    if proximal is not None:
        proximal.add_gradient()
    group = optimizer.param_groups[0]
    norm = float(torch.nn.utils.clip_grad_norm_(group["params"], max_grad_norm))
    if math.isfinite(norm):
        group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad()
    return norm


def accumulate_gradients(pieces: Sequence[Piece], objective: Objective, base: Base, *, model: PreTrainedModel, targets: int) -> float:
    """Add the gradients of these micro-batches of a step to those of the trained parameters; their loss, summed over their targets.

    Args:
        pieces: the micro-batches.
        objective: of the task.
        base: whose model it is.
        model: with its adapters.
        targets: of the whole step, over which its loss is the mean.

    Raises:
        TaskFailed: BadModel, no trained parameter receives a gradient.
    """
    total = 0.0
    for piece in pieces:
        if piece.seed is not None:
            torch.manual_seed(piece.seed)
        batch = collate(piece.examples, objective, base.pad_id)
        loss, _ = summed_loss(model, {name: tensor.to(base.device) for name, tensor in batch.items()}, objective)
        if not loss.requires_grad:
            raise TaskFailed(FailureReason.BAD_MODEL, _NO_GRADIENT)
        (loss / targets).backward()
        total += float(loss.detach())
    return total

"""A range test of learning rates (Smith, arXiv 1506.01186): a few steps of training at each rate, judged by the validation loss.

Every rate starts from the same initial adapter and head, sees the same batches and the same dropout, and is judged on the
same validation samples, so that the losses differ by the rate alone. It is a test of a round's first steps, with the code
that trains. The search begins in the middle and follows the falling loss, so that few rates are tried, the likeliest first.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fedpipe_trainer import device
from fedpipe_trainer.adapters import Adapters, AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import FailureReason, RangeTest, RangeTestResult, RateLoss, scale_of
from fedpipe_trainer.contract.result import MAX_LOSS
from fedpipe_trainer.data import Example, batch_of_step, compose_batches, lengths_of
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.evaluation import mean_loss
from fedpipe_trainer.parallel import Session, SessionRequest, open_session
from fedpipe_trainer.profiling.subject import Subject
from fedpipe_trainer.proximal import ProximalTerm
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode
from fedpipe_trainer.task_runtime import TaskRuntime

_LOG = logging.getLogger(__name__)

Losses = dict[float, float | None]
"""By learning rate; None: diverged."""


class _TimeIsUpError(Exception):
    """The test has taken all its seconds."""


@dataclass(frozen=True)
class _Trial:
    """What every rate is tried with."""

    test: RangeTest
    subject: Subject
    batches: Sequence[tuple[int, ...]]
    validation: Sequence[Example]
    micro_batch: int
    runtime: TaskRuntime
    ends_at: float
    """On the runtime's clock."""

    def loss_before(self) -> float | None:
        """The validation loss of the initial adapter."""
        with self._attached() as adapters:
            return self._validation_loss(adapters)

    def loss_after(self, rate: float) -> float | None:
        """The validation loss after the steps at this rate; None if training diverges.

        Raises:
            _TimeIsUpError: the test's time ends before the last step.
            Terminated: the task was requested to stop.
        """
        hyper = self.test.hyperparameters.model_copy(update={"learning_rate": rate})
        with self._attached() as adapters, open_session(self.subject.workers, self._request(), adapters.trainable) as session:
            torch.manual_seed(self.subject.seed)
            proximal = ProximalTerm.at_start(hyper, adapters)
            optimizer = make_optimizer(hyper, adapters)
            with training_mode(adapters.model, checkpointing=False):
                for step in range(self.test.steps):
                    self._check_time()
                    loss = self._compute_gradients(step, adapters, session)
                    norm = optimizer_step(optimizer, learning_rate=rate, max_grad_norm=hyper.max_grad_norm, proximal=proximal)
                    if not (math.isfinite(loss) and math.isfinite(norm)):
                        return None
            return self._validation_loss(adapters)

    def _compute_gradients(self, step: int, adapters: Adapters, session: Session | None) -> float:
        """The gradients of one step; its loss."""
        subject = self.subject
        examples = [subject.examples[i] for i in batch_of_step(self.batches, step, subject.seed)]
        micro_batch = min(self.micro_batch, len(examples))
        loss, _ = compute_gradients(
            examples,
            subject.objective,
            subject.base,
            adapters=adapters,
            micro_batch=micro_batch,
            session=session,
            seed=subject.seed + step,
        )
        return loss

    def _validation_loss(self, adapters: Adapters) -> float | None:
        base, objective = self.subject.base, self.subject.objective
        loss, _ = mean_loss(adapters.model, self.validation, objective=objective, pad_id=base.pad_id, batch_size=self.micro_batch)
        return loss if loss <= MAX_LOSS else None  # NaN is not

    @contextmanager
    def _attached(self) -> Iterator[Adapters]:
        request = self._request()
        spec = AdapterSpec(ranks=request.ranks, scale=request.scales.__getitem__, dropout=request.dropout)
        with attach_adapters(self.subject.base, spec, AdapterTensors(), request.seed) as adapters:
            yield adapters

    def _request(self) -> SessionRequest:
        """How every process that computes gradients attaches the adapters."""
        subject, test = self.subject, self.test
        ranks = {weight.name: subject.rank for weight in subject.weights}
        return SessionRequest(
            ranks,
            dict.fromkeys(ranks, scale_of(test.scaling, test.alpha, subject.rank)),
            subject.seed,
            dropout=test.hyperparameters.dropout,
            memory_limit_bytes=self.runtime.memory_limit_bytes,
            is_deterministic=True,
        )

    def _check_time(self) -> None:
        if self.runtime.stop_requested():
            raise Terminated
        if self.runtime.elapsed_seconds() >= self.ends_at:
            raise _TimeIsUpError


def measure_rates(
    test: RangeTest, subject: Subject, validation: Sequence[Example], *, micro_batch: int, runtime: TaskRuntime
) -> RangeTestResult:
    """The validation losses of the rates that could be tried, or the problem that prevented it.

    Args:
        test: which rates, and how.
        subject: the base, which must not have adapters, and the training samples.
        validation: at most `test.validation_samples` validation samples.
        micro_batch: samples that are known to fit in memory in a training step.
        runtime: its clock, and whether to stop.

    Raises:
        Terminated: the task was requested to stop.
    """
    batches = compose_batches(lengths_of(subject.examples), test.batch_size, subject.seed)
    trial = _Trial(test, subject, batches, validation, micro_batch, runtime, ends_at=runtime.elapsed_seconds() + test.seconds)
    try:
        with device.deterministic(subject.base.device):
            before = trial.loss_before()
            losses = {} if not before else search(test.learning_rates, trial.loss_after)
    except (TaskFailed, RuntimeError, MemoryError) as error:
        if not (isinstance(error, TaskFailed) and error.reason is FailureReason.OUT_OF_MEMORY) and not device.is_out_of_memory(error):
            raise
        return _problem("out of memory: allow a smaller batch in planning.batchSizes, or write training.learningRate")
    if before is None:
        return _problem("the validation loss of the untrained model is not finite: allow 32 in planning.bits, or use another base model")
    if before == 0:
        return _problem("there is nothing to learn: every validation row has the same label or no target, so that the loss is 0")
    if not losses:
        share = f"{test.seconds:.3g} s, the small share of rounds.deadline that the test may take"
        return _problem(f"not even one rate could be tried in {share}: raise rounds.deadline, or write training.learningRate")
    rates = tuple(RateLoss(learning_rate=rate, loss=losses[rate]) for rate in sorted(losses))
    return RangeTestResult(samples=len(validation), loss_before=before, rates=rates)


def search(rates: Sequence[float], loss_after: Callable[[float], float | None]) -> Losses:
    """Try the middle one of these ascending rates, then go upwards until the loss gets worse; downwards if it did so at once.

    The loss has one valley in the rate, so the other direction is not tried. When the time is up, the rest is left out.
    """
    losses: Losses = {}
    try:
        losses[rates[len(rates) // 2]] = loss_after(rates[len(rates) // 2])
        for direction in (1, -1):
            if _climb(rates, loss_after, losses, direction):
                break
    except _TimeIsUpError:
        _LOG.info("the range test's time is up: %d of %d learning rates were tried", len(losses), len(rates))
    return losses


def _climb(rates: Sequence[float], loss_after: Callable[[float], float | None], losses: Losses, direction: int) -> bool:
    """Go on from the middle rate until the loss gets worse, or diverges where it did not before; whether a step was no worse."""
    at = len(rates) // 2
    while 0 <= at + direction < len(rates) and not (direction > 0 and losses[rates[at]] is None):
        rate = rates[at + direction]
        losses[rate] = loss_after(rate)
        if _is_worse(losses[rate], losses[rates[at]]):
            break
        at += direction
    return at != len(rates) // 2


def _is_worse(loss: float | None, than: float | None) -> bool:
    return (math.inf if loss is None else loss) > (math.inf if than is None else than)


def _problem(sentence: str) -> RangeTestResult:
    text = f"no learning rate was tested: {sentence}"
    _LOG.warning("%s", text)
    return RangeTestResult(problem=text)

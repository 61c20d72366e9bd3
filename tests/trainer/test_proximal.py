"""FedProx's proximal term: its gradient is the formula's, it holds a training near its start, and it costs nothing where it is off."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_training import Q0, V1, a_training_task, make_runtime
from transformers import PreTrainedModel

from fedpipe_trainer.adapters import Adapters, AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import GlobalAdapter, Hyperparameters, SequenceClassification, TrainResult, TrainTask
from fedpipe_trainer.data import Example
from fedpipe_trainer.errors import Terminated
from fedpipe_trainer.model import load
from fedpipe_trainer.proximal import ProximalTerm
from fedpipe_trainer.recipes import train
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step
from fedpipe_trainer.task_runtime import TaskRuntime
from fedpipe_trainer.transfer import describe

Toy = Callable[[str], Path]
CLASSES: Final = SequenceClassification(text="a", label="b", labels=("left", "right"), max_length=24)
EXAMPLES: Final = [Example(list(range(1, n)), [n % 2]) for n in (20, 5, 9, 12)]
MODEL: Final = PreTrainedModel.__new__(PreTrainedModel)
"""None is needed."""


def with_mu(mu: float, **fields: Any) -> Hyperparameters:
    return Hyperparameters(learning_rate=0.01, proximal_mu=mu, **fields)


# --- the gradient


def test_the_gradient_is_mu_times_the_distance_from_the_start() -> None:
    weight, bias = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), nn.Parameter(torch.tensor([5.0]))
    term = ProximalTerm.at_start(with_mu(0.5), Adapters(MODEL, {"weight": weight, "bias": bias}))
    assert term is not None
    with torch.no_grad():
        weight.copy_(torch.tensor([[1.0, 4.0], [0.0, 4.5]]))
        bias.copy_(torch.tensor([-5.0]))
    weight.grad, bias.grad = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.zeros(1)

    term.add_gradient()

    assert weight.grad.tolist() == [[1.0, 2.0], [-0.5, -0.75]]
    assert bias.grad.tolist() == [-5.0]


def test_a_parameter_that_no_data_reach_stays_as_it_is() -> None:
    reached, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    adapters = Adapters(MODEL, {"other": other, "reached": reached})
    optimizer, term = make_optimizer(with_mu(1.0), adapters), ProximalTerm.at_start(with_mu(1.0), adapters)
    reached.grad = torch.ones(2)

    optimizer_step(optimizer, learning_rate=0.1, max_grad_norm=1.0, proximal=term)

    assert other.tolist() == [1.0, 1.0]
    assert other.grad is None
    assert reached.tolist() != [1.0, 1.0]


def test_the_gradients_are_clipped_with_the_term() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    adapters = Adapters(MODEL, {"weight": weight})
    optimizer, term = make_optimizer(with_mu(2.0), adapters), ProximalTerm.at_start(with_mu(2.0), adapters)
    with torch.no_grad():
        weight.copy_(torch.tensor([3.0]))
    weight.grad = torch.tensor([1.0])

    assert optimizer_step(optimizer, learning_rate=0.1, max_grad_norm=1.0, proximal=term) == pytest.approx(7.0)


@pytest.mark.parametrize("micro_batch", [4, 3, 1])
def test_the_gradient_is_that_of_the_whole_objective_whatever_the_micro_batches(toy: Toy, micro_batch: int) -> None:
    """Against torch's gradient of the loss plus mu/2 times the squared distance, for factors, a head and whole modules."""
    base, mu = load(toy("llama"), 32, CLASSES, modules_to_save=("model.norm",)), 0.7
    with attach_adapters(base, AdapterSpec({Q0: 2, V1: 3}, lambda _weight: 1.0), AdapterTensors(), 0) as adapters:
        term, start = ProximalTerm.at_start(with_mu(mu), adapters), {key: p.detach().clone() for key, p in adapters.trainable.items()}
        assert term is not None
        move(adapters.trainable.values())
        compute_gradients(EXAMPLES, CLASSES, base, adapters=adapters, micro_batch=len(EXAMPLES))
        distance = sum(((p - start[key]) ** 2).sum() for key, p in adapters.trainable.items())
        assert isinstance(distance, Tensor)
        (mu / 2 * distance).backward()
        expected = {key: gradient(p) for key, p in adapters.trainable.items()}

        compute_gradients(EXAMPLES, CLASSES, base, adapters=adapters, micro_batch=micro_batch)
        term.add_gradient()

        assert {"base_model.model.model.norm.weight", "base_model.model.score.weight"} < expected.keys()
        for key, parameter in adapters.trainable.items():
            assert torch.allclose(gradient(parameter), expected[key], atol=1e-6, rtol=1e-5), key


def move(parameters: Any) -> None:
    """Away from where they are, each in another direction."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


def test_without_mu_there_is_no_term_and_no_copy() -> None:
    assert ProximalTerm.at_start(Hyperparameters(), Adapters(MODEL, {"weight": nn.Parameter(torch.ones(1))})) is None


# --- whole trainings


class Site:
    """Trains a toy model; each training has a file of its own."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._numbers = itertools.count()
        self.path = folder

    def task(self, mu: float, *, plan: Any = None, steps: int = 30, modules_to_save: tuple[str, ...] = (), **changed: Any) -> TrainTask:
        fields = {"hyperparameters": with_mu(mu)} | changed
        self.path = self.folder / "store" / f"{next(self._numbers)}.safetensors"
        task = a_training_task(self.model, self.folder, {Q0: 4, V1: 4}, steps=steps, adapter=self.path.as_uri(), **fields)
        model = task.model.model_copy(update={"modules_to_save": modules_to_save})
        return task.model_copy(update={"model": model, "plan": task.plan.model_copy(update=plan or {})})

    def run(self, task: TrainTask, runtime: TaskRuntime | None = None) -> TrainResult:
        return train.run(task, runtime or make_runtime(self.folder / "scratch"))

    def train(self, mu: float, **changed: Any) -> tuple[TrainResult, bytes]:
        result = self.run(self.task(mu, **changed))
        return result, self.path.read_bytes()

    def distance_from_the_start(self, mu: float, **changed: Any) -> float:
        """Of the update from one that almost no rate has moved."""
        tiny = Hyperparameters(learning_rate=1e-12)
        self.run(self.task(0.0, **changed, hyperparameters=tiny))
        start = load_file(self.path)
        self.run(self.task(mu, **changed))
        end = load_file(self.path)
        return sum(float(((end[key] - start[key]) ** 2).sum()) for key in start) ** 0.5

    def global_adapter(self) -> GlobalAdapter:
        """An earlier update as the global adapter: of more components than the site trains, and with the head's values."""
        self.run(self.task(0.0, objective=CLASSES, plan={"ranks": {Q0: 6, V1: 4}}))
        artifact = describe(self.path)
        return GlobalAdapter(url=self.path.as_uri(), sha256=artifact.sha256, size=artifact.size)


@pytest.fixture
def site(toy: Toy, tmp_path: Path) -> Site:
    return Site(toy("llama"), tmp_path)


UPPER: Final = {"lowest_layer": 1, "ranks": {V1: 4}}
CASES: Final = [
    pytest.param({}, id="32 bits"),
    pytest.param({"bits": 8}, id="8 bits"),
    pytest.param({"bits": 4}, id="4 bits"),
    pytest.param({"plan": UPPER}, id="the upper layers"),
    pytest.param({"plan": UPPER | {"cache_activations": True}}, id="cached activations"),
    pytest.param({"plan": {"gradient_checkpointing": True}}, id="recomputed activations"),
    pytest.param({"objective": CLASSES}, id="a head"),
    pytest.param({"modules_to_save": ("model.norm", "lm_head")}, id="modules that are trained whole"),
]


@pytest.mark.parametrize("changed", CASES)
def test_the_larger_mu_the_nearer_a_training_stays_to_its_start(site: Site, changed: dict[str, Any]) -> None:
    distances = [site.distance_from_the_start(mu, **changed) for mu in (0.0, 1.0, 10.0)]

    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.5 * distances[0]


def test_the_first_step_is_the_same_bit_for_bit_since_nothing_has_moved_yet(site: Site) -> None:
    start = {"objective": CLASSES, "global_adapter": site.global_adapter(), "plan": {"ranks": {Q0: 2, V1: 4}}}

    assert site.train(10.0, steps=1, **start)[1] == site.train(0.0, steps=1, **start)[1]
    assert site.train(10.0, steps=2, **start)[1] != site.train(0.0, steps=2, **start)[1]


def test_the_losses_that_are_reported_are_those_of_the_data(site: Site) -> None:
    """In the second step the parameters are the same and have moved: with the term, the loss would be larger."""
    with_term, without = (site.train(mu, steps=3)[0] for mu in (10.0, 0.0))

    assert with_term.losses[:2] == without.losses[:2]
    assert with_term.losses[2] != without.losses[2]


def test_micro_batches_give_the_update_of_a_whole_batch(site: Site) -> None:
    updates = []
    for size in (4, 1):
        site.train(1.0, micro_batch=size, steps=8)
        updates.append(load_file(site.path))

    whole, split = updates
    assert whole.keys() == split.keys()
    assert max(float((whole[key] - split[key]).abs().max()) for key in whole) < 1e-5


@pytest.mark.parametrize("is_in_round_1", [True, False])
def test_a_training_that_is_stopped_and_resumed_has_the_same_reference_bit_for_bit(site: Site, *, is_in_round_1: bool) -> None:
    start = {} if is_in_round_1 else {"global_adapter": site.global_adapter(), "plan": {"ranks": {Q0: 2, V1: 4}}}
    fields = {"objective": CLASSES, "steps": 9, "hyperparameters": with_mu(3.0, dropout=0.1)} | start
    url = (site.folder / "store" / "checkpoint").as_uri()
    _, undisturbed = site.train(3.0, **fields)
    runtime, told = make_runtime(site.folder / "scratch"), []
    runtime.write_progress = told.append
    runtime.stop_requested = lambda: any(one.step == 4 for one in told)

    with pytest.raises(Terminated):
        site.run(site.task(3.0, **fields, checkpoint_read=url, checkpoint_write=url), runtime)
    result, resumed = site.train(3.0, **fields, checkpoint_read=url)

    assert result.resumed_from_step == 4
    assert resumed == undisturbed


def test_a_checkpoint_of_another_mu_is_not_resumed(site: Site) -> None:
    url = (site.folder / "store" / "checkpoint").as_uri()
    runtime, told = make_runtime(site.folder / "scratch"), []
    runtime.write_progress = told.append
    runtime.stop_requested = lambda: any(one.step == 2 for one in told)
    with pytest.raises(Terminated):
        site.run(site.task(1.0, checkpoint_write=url), runtime)

    assert site.train(0.5, steps=30, checkpoint_read=url)[0].resumed_from_step == 0
    assert site.train(1.0, steps=30, checkpoint_read=url)[0].resumed_from_step == 2

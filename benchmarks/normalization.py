"""Which normalization holds where sites take very different numbers of steps: many short trials on a stand-in for a language model.

    python benchmarks/normalization.py [--seeds 2] [--steps 70 70 33 33 13 13 5 5] [--batches 16 16 16 16 16 16 16 16]
                                       [--cut 2 | --optimizers]

The stand-in: MiniLM's frozen features of 20 Newsgroups (mean of the last layer over 48 tokens), two frozen residual layers of width 384
with LoRA of rank 8 each, and a trained head. Eight sites, classes by Dirichlet 0.5; AdamW anew in each round. The
increments are averaged by the operator's own coefficients, densely, and factorised again. It is no language model: it tells rules apart in
seconds, and what it shows has to be confirmed on one (`benchmarks/fleet`). The first call computes the features (some minutes).

With `--cut`, up to so many sites, drawn in each round, are stopped after at most a fifth of their steps, as by a deadline, and the ways to
count their steps are compared instead. With `--optimizers`, the server's optimizers, each at some learning rates, by the operator's own
formulas.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from statistics import mean
from typing import Final, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1] / "examples"), str(Path(__file__).parent / "fleet")]

import torch  # noqa: E402 -- the paths above come first
from configuration import Problem  # noqa: E402
from task import CACHE, Task, load_task, partition  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from fedpipe_operator.aggregation import server_optimizers  # noqa: E402
from fedpipe_operator.aggregation.normalization import Combination, LocalWork, Normalization, by_data, by_effective_steps, power_of_steps  # noqa: E402
from fedpipe_operator.api.aggregation import FEDAVG, ServerOptimizer  # noqa: E402
from fedpipe_operator.shares import max_share  # noqa: E402
from fedpipe_trainer.data import Example, collate  # noqa: E402
from fedpipe_trainer.evaluation import evaluation_mode  # noqa: E402

WIDTH: Final = 384
CLASSES: Final = 20
LAYERS: Final = 2
RANK: Final = 8
SCALE: Final = 16 / RANK**0.5
ROUNDS: Final = 20
STEPS: Final = (70, 70, 33, 33, 13, 13, 5, 5)
"""By site: what the planner gives a fleet that is 1, 2, 4 and 8 times slower, with as much less memory and bandwidth."""
BATCHES: Final = (16,) * len(STEPS)
RULES: Final[Mapping[str, Normalization]] = {
    "FedNova": partial(power_of_steps, exponent=1.0),
    "FedNova, γ ≤ 2": partial(power_of_steps, exponent=1.0, max_server_rate=2.0),
    "FedNova, γ ≤ 1.5": partial(power_of_steps, exponent=1.0, max_server_rate=1.5),
    "FedNova, γ = 1": partial(power_of_steps, exponent=1.0, max_server_rate=1.0),
    "steps^0.75": partial(power_of_steps, exponent=0.75, max_server_rate=inf),
    "steps^0.5": partial(power_of_steps, exponent=0.5, max_server_rate=inf),
    "by data": by_data,
}
COUNTED: Final[Mapping[str, Callable[[Sequence[int], Sequence[int]], Sequence[int]]]] = {
    "taken": lambda taken, _: taken,
    "planned": lambda _, planned: planned,
    "taken, at least the fewest planned": lambda taken, planned: [max(one, min(planned)) for one in taken],
}
"""By which steps the increments of sites that were cut short are divided."""


OPTIMIZERS: Final = (
    FEDAVG,
    *(ServerOptimizer(type="FedAvg", learning_rate=rate) for rate in (0.5, 1.5)),
    *(ServerOptimizer(type="FedAvgM", momentum=beta) for beta in (0.3, 0.5, 0.9)),
    *(ServerOptimizer(type="FedAvgM", momentum=beta, learning_rate=1 - beta) for beta in (0.5, 0.9)),
    *(ServerOptimizer(type=kind, learning_rate=rate) for kind in ("FedAdam", "FedYogi") for rate in (0.003, 0.01, 0.03)),
    *(ServerOptimizer(type="FedAdamW", learning_rate=0.01, weight_decay=decay) for decay in (0.01, 1)),
)
"""What `--optimizers` compares."""


@dataclass(frozen=True)
class Documents:
    """Features (n × 384) and classes."""

    features: Tensor
    classes: Tensor


@dataclass
class Trained:
    """The factors of each layer, A (rank × 384) and B (384 × rank), and the head (20 × 384, 20)."""

    factors: list[tuple[Tensor, Tensor]]
    head: list[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*(tensor for pair in self.factors for tensor in pair), *self.head]

    def products(self) -> list[Tensor]:
        """The update of each layer's weight."""
        return [SCALE * b @ a for a, b in self.factors]

    def copy(self) -> "Trained":
        """One that can be trained."""
        factors = [(a.clone().requires_grad_(), b.clone().requires_grad_()) for a, b in self.factors]
        return Trained(factors, [tensor.clone().requires_grad_() for tensor in self.head])

    def detached(self) -> "Trained":
        """One without gradients."""
        return Trained([(a.detach(), b.detach()) for a, b in self.factors], [tensor.detach() for tensor in self.head])


class Quality(NamedTuple):
    """On the test documents."""

    accuracy: float
    loss: float
    slow_accuracy: float
    """On the six classes that are reported apart."""


class StandIn:
    """The frozen layers with what earlier rounds added to them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.frozen = [torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5 for _ in range(LAYERS)]

    def logits(self, features: Tensor, added: Sequence[Tensor], trained: Trained) -> Tensor:
        """The logits (n × 20)."""
        x = features
        for frozen, extra, (a, b) in zip(self.frozen, added, trained.factors, strict=True):
            x = functional.layer_norm(x + functional.gelu(x @ (frozen + extra).T + SCALE * (x @ a.T) @ b.T), (WIDTH,))
        return x @ trained.head[0].T + trained.head[1]


def main() -> None:
    """Print a row for each setting and rule: means over the last quarter of the rounds, and over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs=8, default=STEPS)
    parser.add_argument("--batches", type=int, nargs=8, default=BATCHES)
    parser.add_argument("--cut", type=int, default=0, choices=range(9))
    parser.add_argument("--optimizers", action="store_true")
    parser.add_argument("--rules", nargs="+", choices=sorted(RULES), default=list(RULES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, test = documents()
    if arguments.cut:
        compare_cuts(arguments, train, test)
        return
    if arguments.optimizers:
        compare_optimizers(arguments, train, test)
        return
    print("| classes of slow sites | rule | accuracy | loss | on the six classes |\n|---|---|---|---|---|")
    for owned in (True, False):
        problems = [Problem(seed, slow_sites_own_classes=owned) for seed in range(arguments.seeds)]
        for name in arguments.rules:
            found = [Trial(problem, arguments.steps, arguments.batches, train, test).run(RULES[name]) for problem in problems]
            cells = " | ".join(f"{mean(values):.3f}" for values in zip(*found, strict=True))
            print(f"| {'their own' if owned else 'as at others'} | {name} | {cells} |", flush=True)


def compare_cuts(arguments: argparse.Namespace, train: Documents, test: Documents) -> None:
    """Print a row for each setting and way to count the steps of the sites that were cut short."""
    print("| classes of slow sites | cut short | divided by the steps | accuracy | loss | on the six classes |\n|---|---|---|---|---|---|")
    for owned in (True, False):
        for cut in range(arguments.cut + 1):
            for counted in COUNTED if cut else ("planned",):
                problems = [Problem(seed, slow_sites_own_classes=owned) for seed in range(arguments.seeds)]
                trials = [Trial(problem, arguments.steps, arguments.batches, train, test) for problem in problems]
                found = [trial.run(_as_by_default, Cuts(cut, counted)) for trial in trials]
                cells = " | ".join(f"{mean(values):.3f}" for values in zip(*found, strict=True))
                print(f"| {'their own' if owned else 'as at others'} | {cut} | {counted} | {cells} |", flush=True)


def compare_optimizers(arguments: argparse.Namespace, train: Documents, test: Documents) -> None:
    """Print a row for each setting and optimizer of the server: its first rounds, and its last ones."""
    print("| classes of slow sites | optimizer | first rounds | accuracy | loss | on the six classes |\n|---|---|---|---|---|---|")
    for owned in (True, False):
        problems = [Problem(seed, slow_sites_own_classes=owned) for seed in range(arguments.seeds)]
        for optimizer in OPTIMIZERS:
            trials = [Trial(problem, arguments.steps, arguments.batches, train, test) for problem in problems]
            points = [trial.points(_as_by_default, optimizer=optimizer) for trial in trials]
            first = mean(point.accuracy for found in points for point in found[: ROUNDS // 4])
            last = " | ".join(f"{mean(values):.3f}" for values in zip(*(last_quarter(found) for found in points), strict=True))
            given = ", ".join(f"{name} {value:g}" for name, value in optimizer.model_dump(exclude={"type"}, exclude_none=True).items())
            print(f"| {'their own' if owned else 'as at others'} | {optimizer.type.value} {given} | {first:.3f} | {last} |", flush=True)


def last_quarter(points: Sequence[Quality]) -> Quality:
    """The means of the last quarter of the rounds."""
    return Quality(*(mean(values) for values in zip(*points[-(ROUNDS // 4) :], strict=True)))


def _as_by_default(work: Sequence[LocalWork]) -> Combination:
    """The operator's own coefficients: no site has more than half of a round's weight."""
    return by_effective_steps(work).limited(max_share(len(work), None))


def documents() -> tuple[Documents, Documents]:
    """The training and the test documents; the features are cached beside the models."""
    path = CACHE / "benchmarks" / "newsgroups-features.pt"
    task = load_task(Problem())
    if not path.is_file():
        model = task.base.model.get_submodule("bert")
        with evaluation_mode(task.base.model):
            parts = [_features(task, model, examples) for examples in (task.train, task.test)]
        path.parent.mkdir(exist_ok=True)
        torch.save(parts, path)
    train, test = torch.load(path)
    average, deviation = train.mean(0), train.std(0) + 1e-3
    classes = [torch.tensor([example.labels[0] for example in examples]) for examples in (task.train, task.test)]
    return Documents((train - average) / deviation, classes[0]), Documents((test - average) / deviation, classes[1])


def _features(task: Task, model: nn.Module, examples: Sequence[Example]) -> Tensor:
    """The mean of the last layer over each text's tokens (n × 384)."""
    found = []
    for start in range(0, len(examples), 64):
        batch = collate(examples[start : start + 64], task.objective, task.base.pad_id)
        mask = batch["attention_mask"][:, :, None].float()
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state.float()
        found.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


@dataclass
class Server:
    """The server's optimizer, by the operator's own formulas on dense tensors; `None` of a tensor: there is nothing yet."""

    optimizer: ServerOptimizer
    before: list[Tensor] | None = None
    moments: list[float | None] = field(default_factory=list)

    def step(self, current: list[Tensor], aggregated: list[Tensor]) -> list[Tensor]:
        """The new tensors, from those of this round and what the updates were aggregated to."""
        known = self.moments or [None] * len(current)
        before = self.before or current  # without momentum
        squares = [float((new - now).square().mean()) for new, now in zip(aggregated, current, strict=True)]
        self.moments = [server_optimizers.second_moment(self.optimizer, v, one) for v, one in zip(known, squares, strict=True)]
        last = self.optimizer if self.before else None
        weights = [server_optimizers.weights(self.optimizer, v, last, old) for v, old in zip(self.moments, known, strict=True)]
        self.before = current
        return [w[0] * new + w[1] * now + w[2] * old for w, new, now, old in zip(weights, aggregated, current, before, strict=True)]


@dataclass(frozen=True)
class Cuts:
    """Sites that are stopped in the midst of a round."""

    sites: int = 0
    """In each round, drawn."""
    counted: str = "planned"
    """By which steps their increments are divided: of `COUNTED`."""

    def taken(self, steps: Sequence[int], generator: torch.Generator) -> list[int]:
        """The steps of each site in a round."""
        cut = set(torch.randperm(len(steps), generator=generator)[: self.sites].tolist())
        shares = (torch.rand(len(steps), generator=generator) / 5).tolist()
        return [max(1, int(share * count)) if site in cut else count for site, (count, share) in enumerate(zip(steps, shares, strict=True))]


class Trial:
    """One federation: the sites' data, steps and batches, and the model that they train."""

    def __init__(self, problem: Problem, steps: Sequence[int], batches: Sequence[int], train: Documents, test: Documents) -> None:
        self.problem, self.steps, self.batches, self.train, self.test, self.model = problem, steps, batches, train, test, StandIn()
        self.split = partition(load_task(problem), problem, len(steps))
        self.rows = [torch.tensor(rows) for rows in self.split.rows]

    def run(self, rule: Normalization, cuts: Cuts = Cuts()) -> Quality:
        """The mean quality of the last quarter of the rounds."""
        return last_quarter(self.points(rule, cuts))

    def points(self, rule: Normalization, cuts: Cuts = Cuts(), optimizer: ServerOptimizer = FEDAVG) -> list[Quality]:
        """The quality after each round."""
        generator = torch.Generator().manual_seed(self.problem.seed + 5)
        factors = [((torch.rand(RANK, WIDTH, generator=generator) * 2 - 1) / WIDTH**0.5, torch.zeros(WIDTH, RANK)) for _ in range(LAYERS)]
        current = Trained(factors, [torch.randn(CLASSES, WIDTH, generator=generator) * 0.02, torch.zeros(CLASSES)])
        total = residual = [torch.zeros(WIDTH, WIDTH) for _ in range(LAYERS)]
        server, points = Server(optimizer), []
        for number in range(ROUNDS):
            steps = cuts.taken(self.steps, generator)
            coefficients = self._coefficients(rule, COUNTED[cuts.counted](steps, self.steps))
            seed = 1000 * self.problem.seed + 10 * number
            updates = [self._local(index, residual, current, count, seed=seed + index) for index, count in enumerate(steps)]
            aggregated = _moved(total, current.products(), [update.products() for update in updates], coefficients)
            heads = _moved(current.head, current.head, [update.head for update in updates], coefficients)
            *total, head, bias = server.step([*total, *current.head], [*aggregated, *heads])
            current = Trained([_factorised(one) for one in total], [head, bias])
            residual = [one - kept for one, kept in zip(total, current.products(), strict=True)]
            points.append(self._quality(residual, current))
        return points

    def _coefficients(self, rule: Normalization, steps: Sequence[int]) -> list[float]:
        """γ p_k of each site."""
        combination = rule([LocalWork(len(rows), count) for rows, count in zip(self.rows, steps, strict=True)])
        return [combination.server_rate * share for share in combination.shares]

    def _local(self, index: int, added: Sequence[Tensor], start: Trained, steps: int, *, seed: int) -> Trained:
        """What a site makes of the global adapter in so many steps of a round."""
        mine, rows, size = start.copy(), self.rows[index], self.batches[index]
        optimizer = torch.optim.AdamW(mine.tensors, lr=self.problem.learning_rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(steps * size // len(rows) + 1)])
        for step in range(steps):
            batch = rows[order[step * size : (step + 1) * size]]
            logits = self.model.logits(self.train.features[batch], added, mine)
            optimizer.zero_grad()
            functional.cross_entropy(logits, self.train.classes[batch]).backward()
            torch.nn.utils.clip_grad_norm_(mine.tensors, 1.0)
            optimizer.step()
        return mine.detached()

    @torch.no_grad()
    def _quality(self, added: Sequence[Tensor], trained: Trained) -> Quality:
        logits = self.model.logits(self.test.features, added, trained)
        hits = (logits.argmax(1) == self.test.classes).float()
        reported = torch.isin(self.test.classes, torch.tensor(sorted(self.split.slow_classes)))
        return Quality(float(hits.mean()), float(functional.cross_entropy(logits, self.test.classes)), float(hits[reported].mean()))


def _moved(
    now: Sequence[Tensor], start: Sequence[Tensor], updates: Sequence[Sequence[Tensor]], coefficients: Sequence[float]
) -> list[Tensor]:
    """Each tensor plus the weighted increments of the sites from where they started."""
    return [
        tensor + torch.stack([weight * (update[i] - start[i]) for weight, update in zip(coefficients, updates, strict=True)]).sum(0)
        for i, tensor in enumerate(now)
    ]


def _factorised(dense: Tensor) -> tuple[Tensor, Tensor]:
    """The leading components as A, of the row norm of a new one, and B."""
    u, s, v = torch.linalg.svd(dense)
    norm = 3**-0.5
    return v[:RANK] * norm, u[:, :RANK] * s[:RANK] / (norm * SCALE)


if __name__ == "__main__":
    main()

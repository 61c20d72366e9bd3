"""Seconds of processor time to plan a large fleet, and how far the plans may be from the best possible ones.

    .venv/bin/python benchmarks/planner.py --sites 1000

Every site differs in speed, memory, bandwidth and samples; the model has 200 weights of lognormal importance; 5 ranks, 4 bit widths, 5
micro-batches, 6 depths. Prints a row of a table. The whole of a round's planning is timed: choices, the round's length, the plans, their
sentences.
"""

import argparse
import random
import time
from dataclasses import replace

from fedpipe_operator.api import FineTuneSpec
from fedpipe_operator.planning import plan_round
from fedpipe_operator.planning.fleet import solve_fleet
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import BaseModelFacts, Bits, Importance, ImportanceMethod, Throughput, WeightShape

GIB = 1024**3
BITS: tuple[Bits, ...] = (4, 8, 16, 32)
LAYERS = 50
BASE = BaseModelFacts(
    architecture="mpnet",
    parameters=400_000_000,
    quantised_parameters=350_000_000,
    layers=LAYERS,
    hidden_size=768,
    intermediate_size=3072,
    attention_heads=12,
    vocabulary_size=30_527,
    weights=tuple(
        WeightShape(name=f"layer.{layer}.{part}", d_out=768, d_in=768, layer=layer) for layer in range(LAYERS) for part in "qkvo"
    ),
)


def main() -> None:
    """Plan a fleet and print the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=1000, help="number of sites")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", action="store_true", help="every site has a cache")
    arguments = parser.parse_args()
    spec = a_spec()
    drawn = a_fleet(arguments.sites, random.Random(arguments.seed))  # noqa: S311 -- test data, no secrets
    sites = {name: replace(site, has_cache=arguments.cache) for name, site in drawn.items()}

    start = time.process_time()
    fleet = plan_round(spec, sites, {})
    whole = time.process_time() - start
    start = time.process_time()
    solution = solve_fleet(PlanRequest(spec=spec, head={}, importance=fleet.importance.scores), sites)
    solving = time.process_time() - start
    print("| sites | with a plan | length of the round, s | planning, processor s | of it solving | proven gap |")
    print("|---:|---:|---:|---:|---:|---:|")
    row = (len(sites), len(fleet.plans.plans), f"{solution.length.seconds:.0f}", f"{whole:.2f}", f"{solving:.2f}", f"{solution.gap:.4%}")
    print(f"| {' | '.join(map(str, row))} |")


def a_spec() -> FineTuneSpec:
    """A run with 5 ranks and 4 bit widths."""
    return FineTuneSpec.model_validate(
        {
            "model": {"source": "file:///models/mpnet"},
            "task": {"type": "CausalLM", "prompt": "{mr}", "response": "{ref}", "maxLength": 128},
            "store": {"bucket": "fedpipe"},
            "planning": {"bits": BITS, "ranks": [0, 2, 4, 8, 16, 32]},
        }
    )


def a_fleet(count: int, draw: random.Random) -> dict[str, SiteProfile]:
    """Sites of which no two are alike; they agree on which weights matter, up to a little noise."""
    scores = {weight.name: draw.lognormvariate(0, 1) for weight in BASE.weights}
    return {name: a_site(name, scores, draw) for name in (f"site-{index:04}" for index in range(count))}


def a_site(name: str, scores: dict[str, float], draw: random.Random) -> SiteProfile:
    """A site: 1.5 to 16 GiB of memory, 0.3 to 300 Mbit/s upwards, 50 to 5,000 samples, a speed within a factor of 40."""
    speed = draw.uniform(100, 4000)
    halves = [{weight: score * draw.lognormvariate(0, 0.1) for weight, score in scores.items()} for _ in range(2)]
    return SiteProfile(
        name=name,
        device="cpu",
        memory_bytes=int(draw.uniform(1.5, 16) * GIB),
        up=10 ** draw.uniform(5.5, 8.5),
        down=10 ** draw.uniform(6.5, 9),
        fingerprint="a" * 64,
        base=BASE,
        labels=(),
        train_samples=draw.randint(50, 5000),
        validation_samples=64,
        mean_tokens=64.0,
        longest_tokens=128,
        setup_seconds=3.0,
        runtime_bytes=600_000_000,
        load_peak_bytes={},
        base_bytes={},
        load_seconds={4: 3.0, 8: 3.0, 16: 2.0, 32: 2.0},
        points=tuple(
            Throughput(
                bits=bits,
                batch_size=batch,
                length=128,
                tokens_per_second=speed * draw.uniform(0.7, 1.2) * batch**0.3,
                evaluate_tokens_per_second=2 * speed * batch**0.3,
                peak_memory_bytes=0,
            )
            for bits in BITS
            for batch in (1, 8)
        ),
        rank=8,
        unsupported={},
        first_step_seconds={},
        importance=Importance(method=ImportanceMethod.GRADIENT, samples=64, first_half=halves[0], second_half=halves[1]),
    )


if __name__ == "__main__":
    main()

"""What malicious sites do to a federation under each rule, ours and Flower's: many short runs on a stand-in for a language model.

    python benchmarks/robustness [--malicious 0 1 2 4] [--attacks scaling …] [--rules Mean …] [--rounds 6] [--seeds 1] [--unequal]

The stand-in is that of `benchmarks/normalization.py`: MiniLM's frozen features of 20 Newsgroups, two frozen layers with LoRA of rank 8, a
trained head. Ten sites, classes by Dirichlet 0.5, steps from 40 to 5. Ours go through the operator's whole aggregation, gate included, with
a global rank of 32; Flower's average A and B apart, with all sites' ranks equal, which its rules need. With --unequal, ours have ranks from
8 to 2. Each run is stored in results.json; what is there is not run again. Prints the tables of the README.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

HERE: Final = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "fleet"), str(HERE.parents[1] / "examples")]

import numpy as np  # noqa: E402 -- the path above comes first
import torch  # noqa: E402
from aggregators import FLOWER, OURS  # noqa: E402
from attacked_federation import Case, Federation  # noqa: E402
from attacks import ATTACKS  # noqa: E402
from normalization import documents  # noqa: E402

RESULTS: Final = HERE / "results.json"
RULES: Final = [*OURS, *(f"Flower {rule}" for rule in FLOWER)]


def main() -> None:
    """Run what is not stored yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--malicious", type=int, nargs="+", default=[0, 1, 2, 4], help="of ten sites")
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--unequal", action="store_true", help="ours only, with ranks that differ between the sites")
    parser.add_argument("--table", action="store_true", help="print the tables of what is stored, and run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if not arguments.table:
        _run_missing(arguments, stored)
    print(_tables(stored))


def _run_missing(arguments: argparse.Namespace, stored: dict[str, Any]) -> None:
    parts = documents()
    for seed in range(arguments.seeds):
        federation = Federation(seed, *parts)
        for case in _cases(arguments, seed):
            if case.key in stored:
                continue
            started = time.monotonic()
            stored[case.key] = federation.run(case) | {"seconds": round(time.monotonic() - started, 1)}
            RESULTS.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            print(case.key, stored[case.key], file=sys.stderr, flush=True)


def _cases(arguments: argparse.Namespace, seed: int) -> list[Case]:
    return [
        Case(rule, attack if malicious else "none", malicious, arguments.rounds, seed, arguments.unequal)
        for malicious in arguments.malicious
        for attack in (arguments.attacks if malicious else ["none"])
        for rule in arguments.rules
        if rule in OURS or not arguments.unequal
    ]


def _tables(stored: dict[str, Any]) -> str:
    """Those of equal ranks, then those of unequal ones."""
    equal = {key: one for key, one in stored.items() if not key.endswith("|unequal")}
    unequal = {key: one for key, one in stored.items() if key.endswith("|unequal")}
    titled = [("Equal ranks", equal), ("Ranks from 8 to 2", unequal)]
    return "\n\n".join(f"### {title}\n\n{_of_ranks(results)}" for title, results in titled if results)


def _of_ranks(stored: dict[str, Any]) -> str:
    """For each number of malicious sites: the final accuracies by rule and attack. Last: the harm to honest sites in all runs."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for key, result in stored.items():
        rule, attack, malicious, *_ = key.split("|")
        found.setdefault((rule, attack, int(malicious)), []).append(result)
    rules = [rule for rule in RULES if any(key[0] == rule for key in found)]
    counts = sorted({malicious for *_, malicious in found if malicious})
    harm = [["rule", "honest clipped", "honest left out"], *(_harm(rule, found) for rule in rules)]
    return "\n\n".join([*(_of_one_count(malicious, rules, found) for malicious in counts), _markdown(harm)])


def _of_one_count(malicious: int, rules: Sequence[str], found: dict[tuple[str, str, int], list[dict[str, Any]]]) -> str:
    head = [f"{malicious * 10} % malicious", "none", *ATTACKS]
    columns = [("none", 0), *((attack, malicious) for attack in ATTACKS)]
    return _markdown([head, *([rule, *(_accuracy(found.get((rule, *one), [])) for one in columns)] for rule in rules)])


def _harm(rule: str, found: dict[tuple[str, str, int], list[dict[str, Any]]]) -> list[str]:
    results = [one for key, of_case in found.items() if key[0] == rule for one in of_case]
    return [rule, _share(results, "clipped"), _share(results, "leftOut")]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _accuracy(results: Sequence[dict[str, Any]]) -> str:
    return f"{mean(one['accuracy'] for one in results):.3f}" if results else "–"


def _share(results: Sequence[dict[str, Any]], name: str) -> str:
    known = [one["harm"] for one in results if one["harm"] is not None]
    return f"{np.sum([one[name] for one in known]) / np.sum([one['honest'] for one in known]):.1%}" if known else "–"


if __name__ == "__main__":
    main()

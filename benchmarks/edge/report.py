"""The tables of the README, from the stored results."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from configuration import CODECS, LOCAL_STEPS, OPTIMIZERS, Arm
from results import Result, stored

from fedpipe_operator.formatting import bytes_text, number_text, percent, rate_text

README: Final = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- figures: made by python benchmarks/edge -->", "<!-- end of the figures -->"
_OPTIMIZER: Final = "FedAvg"


def write_figures(seeds: Sequence[int], rounds: int) -> None:
    """Replace the part of the README between the two comments."""
    text = README.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n\n{figures(seeds, rounds)}\n\n{END}{after}", encoding="utf-8")


def figures(seeds: Sequence[int], rounds: int) -> str:
    """All tables, of what there is."""
    tables = (_losses(seeds, rounds), _codecs(seeds, rounds), _sites(seeds, rounds), _granularities(seeds[0], rounds))
    return "\n\n".join("\n".join(table) for table in tables)


def _losses(seeds: Sequence[int], rounds: int) -> Iterator[str]:
    """A row for each optimizer: the loss after some rounds, and after the last one of each seed."""
    shown = [round_ for round_ in (1, 2, 4) if round_ < rounds]
    yield f"| optimizer | {' | '.join(f'round {one}' for one in shown)} | round {rounds} | of each seed | not above FedAvg's |"
    yield f"|---|{'---:|' * (len(shown) + 1)}---|---|"
    plain = {seed: one.losses[-1] for seed, one in _of(_OPTIMIZER, seeds, rounds).items()}
    for name in OPTIMIZERS:
        found = _of(name, seeds, rounds)
        if found:
            means = [fmean(one.losses[round_] for one in found.values()) for round_ in (*shown, rounds)]
            last = {seed: one.losses[-1] for seed, one in found.items()}
            better = sum(last[seed] <= plain[seed] for seed in last if seed in plain)
            cells = [*(f"{mean:.3f}" for mean in means), ", ".join(f"{one:.3f}" for one in last.values())]
            yield f"| {name} | {' | '.join(cells)} | {'–' if name == _OPTIMIZER else f'{better} of {len(last)}'} |"


def _codecs(seeds: Sequence[int], rounds: int) -> Iterator[str]:
    """A row for each codec: the last loss, what it is of that without one, and what was sent and received of that without one."""
    yield "| codec | loss | of each seed | beside Identity | sent | received | cosine | tensors |"
    yield "|---|---:|---|---:|---:|---:|---:|---|"
    plain = _of(_OPTIMIZER, seeds, rounds)
    for name in (_OPTIMIZER, *CODECS):
        found = {seed: one for seed, one in _of(name, seeds, rounds).items() if seed in plain}
        if not found:
            continue
        losses = [one.losses[-1] for one in found.values()]
        beside = fmean(losses) / fmean(plain[seed].losses[-1] for seed in found) - 1
        rows, plain_rows = ([row for seed in found for row in of[seed].trainings] for of in (found, plain))
        sent, received = (sum(row[what] for row in rows) / sum(row[what] for row in plain_rows) for what in ("uploaded", "downloaded"))
        cosine = _mean(rows, "update_cosine")
        cells = (f"{fmean(losses):.4f}", ", ".join(f"{one:.4f}" for one in losses), f"{beside:+.2%}", percent(sent), percent(received))
        title, told = ("Identity", "–") if name == _OPTIMIZER else (name, _tensors(rows))
        yield f"| {title} | {' | '.join(cells)} | {'–' if cosine is None else f'{cosine:.4f}'} | {told} |"


def _tensors(rows: Sequence[dict[str, Any]]) -> str:
    """Tensors of all updates by codec, in percent."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update({name: int(count) for count, name in (one.split(" ", 1) for one in row["codecs"].split(", "))})
    return ", ".join(f"{name} {percent(count / counts.total())}" for name, count in counts.most_common())


def _sites(seeds: Sequence[int], rounds: int) -> Iterator[str]:
    """A row for each site: means over the runs of FedAvg."""
    titles = ("site", "tokens/s", "with padding", "MFU", "tokens/J", "G", "sent", "received", "network", "memory")
    yield f"| {' | '.join(titles)} |"
    yield f"|---|{'---:|' * (len(titles) - 1)}"
    found = list(_of(_OPTIMIZER, seeds, rounds).values())
    for at, site in enumerate(row["site"] for row in found[0].trainings) if found else ():
        trainings, profiles = [one.trainings[at] for one in found], [one.profiles[at] for one in found]
        speeds = (number_text(_mean(trainings, name)) for name in ("tokens_per_second", "padded_tokens_per_second"))
        joules = _mean(trainings, "tokens_per_joule")
        energy = "not measured" if joules is None else f"{number_text(joules)} ({trainings[0]['energy_source']})"
        sent, received = (bytes_text(_mean(trainings, name)) for name in ("uploaded", "downloaded"))
        memory = _mean(profiles, "memory_bandwidth")
        cells = (*speeds, percent(_mean(trainings, "mfu")), energy, number_text(_mean(trainings, "granularity")), sent, received)
        yield f"| {site} | {' | '.join(cells)} | {rate_text(_mean(trainings, 'bits_per_second'))} | {bytes_text(memory)}/s |"


def _granularities(seed: int, rounds: int) -> Iterator[str]:
    """A row for each number of local steps: the granularity of each site, and what it is of that with the fewest."""
    found = {steps: one for steps in LOCAL_STEPS if (one := stored(Arm(_OPTIMIZER, seed, steps=steps), rounds)) is not None}
    sites = [row["site"] for row in next(iter(found.values())).trainings] if found else []
    yield f"| local steps | {' | '.join(f'G of {site}' for site in sites)} |"
    yield f"|---|{'---:|' * len(sites)}"
    for steps, one in found.items():
        yield f"| {steps} | {' | '.join(number_text(row['granularity']) for row in one.trainings)} |"


def _of(name: str, seeds: Sequence[int], rounds: int) -> dict[int, Result]:
    """By seed, the results that there are."""
    return {seed: one for seed in seeds if (one := stored(Arm(name, seed), rounds)) is not None}


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return fmean(values) if values else None

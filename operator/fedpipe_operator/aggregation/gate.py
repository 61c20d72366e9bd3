"""The gate: the checks that every adapter must pass before it is aggregated. A refusal costs that site the round and nothing else.

It trusts nothing that comes from a site. The result is admitted already (`fedpipe_operator.admission`): the gate checks the adapter's size
against the plan, its bytes against the result, and its tensors against the plan. It streams: one weight's tensors are in memory at a time.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpipe_operator.admission import AdmittedUpdate, RefusalReason, Refused, RefusedError
from fedpipe_operator.admission.refusal import require_equal
from fedpipe_operator.aggregation import lengths
from fedpipe_operator.aggregation.encoded import Tensors, open_update, shapes_of
from fedpipe_operator.aggregation.factors import Factors, Float64
from fedpipe_operator.aggregation.lengths import SquaredLengths
from fedpipe_operator.aggregation.tensors import Float32, MalformedError, Source, TensorFile, factor_keys, open_tensors, sha256_of
from fedpipe_operator.mixing import Mixed, mixable
from fedpipe_operator.rounds.records import RoundPlan, Verdict, verdict_of
from fedpipe_trainer.codecs import Part, update_codecs
from fedpipe_trainer.codecs.files import codec_in, parts_of

_LOG: Final = logging.getLogger(__name__)
_HEADER_BYTES: Final = 4096
"""Of a header, beside its tensors: metadata, and spaces at its end."""
_ENTRY_BYTES: Final = 256
"""Of a tensor in a header, beside its key."""


@dataclass(frozen=True)
class Expected:
    """What the adapter must match: its plan, and the largest distance from the global adapter."""

    plan: RoundPlan
    site: str
    max_norm: float
    """Upper bound on the Frobenius norm of the whole update's increment: of all weights and head tensors together, not of each weight."""
    previous: TensorFile | None = None
    """The global adapter that the round started from; None in round 1."""
    squared_lengths: SquaredLengths = lengths.of_product
    """How an increment is measured, by what the method averages; the longest counts."""


def refuse_unmixed(verdicts: Mapping[str, Verdict], min_sites: Mapping[str, int], mixed: Mixed = int) -> dict[str, Verdict]:
    """The verdicts, with a refusal of each accepted update whose site asks for more updates in an aggregate than it will be made of.

    Args:
        verdicts: by site.
        min_sites: by site, the least number of updates in an aggregate with its own.
        mixed: how many of the accepted updates the aggregation's rule makes it of; left out: all.
    """
    accepted = {site: min_sites.get(site, 1) for site, verdict in verdicts.items() if verdict.accepted}
    content = mixable(accepted, mixed=mixed)
    message = "policy.minSites of the site is {}, and without it {} of {} accepted updates may be aggregated"
    refused = {
        site: Verdict(accepted=False, reason=RefusalReason.TOO_FEW_SITES, message=message.format(least, mixed(len(content)), len(accepted)))
        for site, least in accepted.items()
        if site not in content
    }
    return dict(verdicts) | refused


def check(update: AdmittedUpdate, source: Source, expected: Expected) -> Verdict:
    """Accepted, or refused with a `RefusalReason` and a message that names the object, what was found and what was expected.

    No bytes lead to an exception: a fault of these checks themselves is the site's refusal, too.

    Raises:
        OSError: the source cannot be read.
        MemoryError: this process has too little memory.
    """
    try:
        _check_bytes(update, source, expected)
        file = _open_adapter(source, expected)
        _check_tensors(file, expected)
        _check_values(open_update(file, expected.plan, expected.site, update.scales, expected.previous), update, expected)
    except RefusedError as error:
        return verdict_of(error.refused)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 -- a site controls every byte: no fault that it finds may cost others anything
        _LOG.exception("an adapter cannot be checked")
        message = f"adapter of site {expected.site}: it cannot be checked: {type(error).__name__}; see the log"
        return verdict_of(Refused(RefusalReason.MALFORMED, message))
    return Verdict(accepted=True)


def check_size(size: int, plan: RoundPlan, site: str, *, stated: int) -> None:
    """An adapter has no more bytes than its plan implies, and those that its result states; asked before any of them is read.

    Args:
        size: of the object, in bytes.
        plan: of the round, which has a plan for the site.
        site: whose adapter it is.
        stated: bytes by the site's result. By these, it was decided where the round is aggregated, and how much disk that takes.

    Raises:
        RefusedError: `TooLarge`, `HashMismatch`.
    """
    most = max_adapter_bytes(plan, site)
    if size > most:
        raise RefusedError(RefusalReason.TOO_LARGE, f"adapter of site {site}: found {size} bytes, expected at most {most}")
    require_equal(RefusalReason.HASH_MISMATCH, found=size, expected=stated, what=f"adapter of site {site}: size in bytes")


def max_adapter_bytes(plan: RoundPlan, site: str) -> int:
    """Of the adapter of this site, which has a plan in the round."""
    shapes, rungs = shapes_of(plan, site), update_codecs(plan.codec)
    largest = (max((parts_of(key, shape, codec) for codec in (None, *rungs)), key=_size_of) for key, shape in shapes.items())
    return sum(map(_size_of, largest)) + _max_update_header_bytes(plan, site)


def _size_of(parts: Mapping[str, Part]) -> int:
    return sum(part.size for part in parts.values())


def _max_update_header_bytes(plan: RoundPlan, site: str) -> int:
    """Of the header of this site's adapter: of each tensor, the longest that one of the round's codecs makes."""
    shapes, rungs = shapes_of(plan, site), update_codecs(plan.codec)
    entries = ([_entry_bytes(parts_of(key, shape, codec)) for codec in (None, *rungs)] for key, shape in shapes.items())
    return _HEADER_BYTES + sum(map(max, entries))


def _entry_bytes(keys: Iterable[str]) -> int:
    return sum(_ENTRY_BYTES + len(key.encode()) for key in keys)


def max_global_header_bytes(plan: RoundPlan) -> int:
    """Of the header of a global adapter of the run, at most."""
    keys = [key for weight in plan.weights for key in factor_keys(weight)]
    return max_header_bytes(dict.fromkeys([*plan.head, *keys], ()))


def max_header_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of a file with these tensors: each has its key, type, shape and offsets there."""
    return _HEADER_BYTES + _entry_bytes(shapes)


def _check_bytes(update: AdmittedUpdate, source: Source, expected: Expected) -> None:
    stated, site = update.adapter, expected.site
    if stated is None:
        raise RefusedError(RefusalReason.NO_ADAPTER, f"result of site {site}: names no adapter")
    check_size(source.size, expected.plan, site, stated=stated.size)
    require_equal(RefusalReason.HASH_MISMATCH, found=sha256_of(source), expected=stated.sha256, what=f"adapter of site {site}: SHA-256")


def _open_adapter(source: Source, expected: Expected) -> TensorFile:
    try:
        return open_tensors(source, _max_update_header_bytes(expected.plan, expected.site))
    except MalformedError as error:
        raise RefusedError(RefusalReason.MALFORMED, f"adapter of site {expected.site}: {error}") from error


def _check_tensors(file: TensorFile, expected: Expected) -> None:
    """The file has every tensor of the plan, each as it is or as one of the round's codecs has it, and nothing else."""
    adapter, plan = f"adapter of site {expected.site}", expected.plan
    shapes, rungs = shapes_of(plan, expected.site), update_codecs(plan.codec)
    parts = {key: parts_of(key, shape, codec_in(file.entries, key, shape, rungs)) for key, shape in shapes.items()}
    wanted = {key: part for of_tensor in parts.values() for key, part in of_tensor.items()}
    for reason, keys, fault in (
        (RefusalReason.UNKNOWN_KEY, file.entries.keys() - wanted.keys(), "the plan has no tensor"),
        (RefusalReason.MISSING_KEY, wanted.keys() - file.entries.keys(), "the file has no tensor"),
    ):
        if keys:
            raise RefusedError(reason, f"{adapter}: {fault} {min(keys)} ({len(keys)} such; {len(shapes)} tensors expected)")
    for key, part in sorted(wanted.items()):
        entry = file.entries[key]
        require_equal(RefusalReason.WRONG_SHAPE, found=entry.shape, expected=part.shape, what=f"{adapter}: shape of {key}")
        require_equal(RefusalReason.WRONG_DTYPE, found=entry.dtype, expected=part.dtype, what=f"{adapter}: dtype of {key}")


def _check_values(tensors: Tensors, update: AdmittedUpdate, expected: Expected) -> None:
    """All values are finite, and the norm of the increment from the global adapter is at most `max_norm`."""
    site, plan = expected.site, expected.plan
    squares = {key: _squared_distance(_read_finite(tensors, key, site), expected.previous, key) for key in sorted(plan.head)}
    for weight in sorted(plan.weights):
        if plan.plans[site].ranks.get(weight, 0):
            a, b = (_read_finite(tensors, key, site) for key in factor_keys(weight))
            start = _global_factors(expected.previous, weight, len(a))
            squares[weight] = max(expected.squared_lengths(Factors(b=b, a=a), update.scales[weight], start))
    norm = math.sqrt(sum(squares.values()))
    if norm > expected.max_norm:
        raise RefusedError(RefusalReason.NORM_TOO_LARGE, _norm_message(squares, norm, expected))


def _norm_message(squares: Mapping[str, float], norm: float, expected: Expected) -> str:
    largest = max(squares, key=lambda name: squares[name])
    found = f"found {norm:.4g} ({math.sqrt(squares[largest]):.4g} of it at {largest})"
    return f"adapter of site {expected.site}: Frobenius norm of the increment: {found}, expected at most {expected.max_norm:.4g}"


def _read_finite(tensors: Tensors, key: str, site: str) -> Float32:
    try:
        tensor = tensors.read(key)
    except MalformedError as error:
        raise RefusedError(RefusalReason.MALFORMED, f"adapter of site {site}: {error}") from error
    finite = np.isfinite(tensor)
    if not finite.all():
        count = finite.size - int(np.count_nonzero(finite))
        raise RefusedError(
            RefusalReason.NOT_FINITE, f"adapter of site {site}: {count} of {finite.size} values of {key} are NaN or infinite, expected none"
        )
    return tensor


def _global_factors(previous: TensorFile | None, weight: str, rank: int) -> Factors | None:
    a_key, b_key = factor_keys(weight)
    if previous is None or a_key not in previous.entries:
        return None
    return Factors(b=previous.read(b_key)[:, :rank], a=previous.read(a_key)[:rank])


def _squared_distance(tensor: Float32, previous: TensorFile | None, key: str) -> float:
    increment: Float64 = tensor.astype(np.float64)
    if previous is not None:
        increment = increment - previous.read(key)
    return float(np.vdot(increment, increment))

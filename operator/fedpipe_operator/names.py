"""Every derived name and key, so that two reconciles of a run always name the same object.

Kubernetes names have at most 63 characters; a longer one keeps its beginning and gets a hash of the whole.
Store keys are relative to the run's own prefix, `<prefix>/<namespace>/<name>/<uid>/`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fedpipe_operator.api.meta import LABEL_OPERATOR_CLASS, NAME_MAX

_HASH_LENGTH: Final = 16
"""Hexadecimal digits: two names of one hash cannot be found."""
_ATTEMPT: Final = re.compile(r"(?P<folder>.+)/(?P<attempt>0|[1-9][0-9]*)/(?P<file>[^/]+)")
"""A key of an attempt. Rounds are padded with zeros, so that none is taken for an attempt."""
_ROUND: Final = re.compile(r"rounds/([0-9]+)/")

COMPARISON = "comparison/comparison.json"
REPORT = "report.html"
EXPORT_ADAPTER = "export/adapter"
EXPORT_MERGED = "export/merged"
MODEL_CARD = f"{EXPORT_ADAPTER}/README.md"
DRY_EXPORT = "export/dry"
FORM_PROBE = "form-probe"
"""Of the object with which it is tried whether the store has forms."""


def operator_class_selector(operator_class: str) -> str:
    """The label selector of the runs and sites that an operator of this class reconciles; of none: those without the label."""
    return f"{LABEL_OPERATOR_CLASS}={operator_class}" if operator_class else f"!{LABEL_OPERATOR_CLASS}"


def bounded(name: str) -> str:
    """The name itself if Kubernetes takes it, else its beginning and a hash of the whole: at most 63 characters, no collisions."""
    if len(name) <= NAME_MAX:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{name[: NAME_MAX - _HASH_LENGTH - 1].rstrip('-')}-{digest}"


def job(run: str, kind: str, *, site: str = "", round_: int = 0, attempt: int = 0) -> str:
    """A Job's name: the same for the same run, kind of work, site, round and attempt."""
    parts = [run, kind, f"r{round_}" if round_ else "", site, f"a{attempt}"]
    return bounded("-".join(part for part in parts if part))


def job_object(uid: str, name: str, *parts: object) -> str:
    """The name of the Kubernetes Job for a job, and of its task's Secret: unique, also among all runs of a namespace.

    Runs and sites are named by people, and `a-profile` with the site `b` has the parts of `a` with the site `profile-b`. So the name ends
    with a hash of the run's uid and of the parts one by one.

    Args:
        uid: of the run.
        name: of the job within its run.
        parts: what identifies it there: kind, site, round, attempt.
    """
    digest = hashlib.sha256(repr((uid, *map(str, parts))).encode()).hexdigest()[:_HASH_LENGTH]
    return f"{name[: NAME_MAX - _HASH_LENGTH - 1].rstrip('-')}-{digest}"


def run_prefix(prefix: str, namespace: str, name: str, uid: str) -> str:
    """Where all of a run's objects are in its bucket."""
    return "/".join(part for part in (prefix, namespace, name, uid) if part)


def profile_result(site: str, attempt: int) -> str:
    """Key of what was measured at a site."""
    return f"profile/{site}/{attempt}/result.json"


def profile_probe(site: str, attempt: int) -> str:
    """Key of the object with which a site measures its bandwidth to the store."""
    return f"profile/{site}/{attempt}/probe"


def round_folder(round_: int) -> str:
    """Prefix of all of a round's keys."""
    return f"rounds/{round_:04d}"


def round_plan(round_: int) -> str:
    """Key of a round's `RoundPlan`."""
    return f"{round_folder(round_)}/plan.json"


def out_of_reach(round_: int) -> str:
    """Key of what a worker wrote in place of a round's plan, because too few sites can take part."""
    return f"{round_folder(round_)}/out-of-reach.json"


def expired_profiles(round_: int) -> str:
    """Key of the profiles that missed the deadline before a round that could not be planned."""
    return f"{round_folder(round_)}/expired-profiles.json"


def update_folder(round_: int, site: str, attempt: int) -> str:
    """Prefix of one site's update."""
    return f"{round_folder(round_)}/updates/{site}/{attempt}"


def update_adapter(round_: int, site: str, attempt: int) -> str:
    """Key of an update's adapter."""
    return f"{update_folder(round_, site, attempt)}/adapter.safetensors"


def update_pieces(round_: int, site: str, attempt: int) -> str:
    """Prefix of the pieces of an update's adapter. Outside of the round's folder, which is listed at every look at the run."""
    return f"pieces/{round_:04d}/{site}/{attempt}"


def piece(folder: str, number: int) -> str:
    """Key of a piece, from 0."""
    return f"{folder}/{number:04d}"


def update_result(round_: int, site: str, attempt: int) -> str:
    """Key of an update's result, written after its adapter."""
    return f"{update_folder(round_, site, attempt)}/result.json"


def update_verdict(round_: int, site: str, attempt: int) -> str:
    """Key of what the gate said of an update."""
    return f"{update_folder(round_, site, attempt)}/verdict.json"


def checkpoint(round_: int, site: str) -> str:
    """Key of a site's checkpoint: one for all attempts of the round, so that the next attempt resumes from it."""
    return f"{round_folder(round_)}/updates/{site}/checkpoint.safetensors"


def global_adapter(round_: int, sha256: str) -> str:
    """Key of a global adapter of this round: the round's commit says which one counts."""
    return f"{round_folder(round_)}/global/adapter-{sha256[:_HASH_LENGTH]}.safetensors"


def encoded_adapter(round_: int, sha256: str) -> str:
    """Key of a global adapter of this round as the sites read it: the round's commit says which one counts."""
    return f"{round_folder(round_)}/global/encoded-{sha256[:_HASH_LENGTH]}.safetensors"


def round_commit(round_: int) -> str:
    """Key of a round's commit."""
    return f"{round_folder(round_)}/global/commit.json"


def evaluation_folder(round_: int, site: str) -> str:
    """Prefix of one site's evaluations of a round's global adapter (round 0: of the base)."""
    return f"{round_folder(round_)}/evaluations/{site}"


def evaluation_result(round_: int, site: str, attempt: int) -> str:
    """Key of one of them."""
    return f"{evaluation_folder(round_, site)}/{attempt}/result.json"


def round_evaluation(round_: int) -> str:
    """Key of a round's `RoundEvaluation`."""
    return f"{round_folder(round_)}/evaluation.json"


def export_result(attempt: int) -> str:
    """Key of the export's result."""
    return f"export/{attempt}/result.json"


def dry_export_result(attempt: int) -> str:
    """Key of what the dry export found."""
    return f"{DRY_EXPORT}/{attempt}/result.json"


def event_file(site: str) -> str:
    """Key of TensorBoard's event file of a site; of site "", that of the federation."""
    return f"tensorboard/{f'sites/{site}' if site else 'federated'}/events.out.tfevents.0000000001.fedpipe"


def progress_beside(result: str) -> str:
    """Key of the progress of the task whose result has this key."""
    return f"{result.rpartition('/')[0]}/progress.json"


@dataclass(frozen=True)
class Listing:
    """Keys that a store listed, with the attempts among them, so that what is absent costs no request."""

    keys: frozenset[str]

    @cached_property
    def _attempts(self) -> Mapping[tuple[str, str], tuple[int, ...]]:
        """Ascending, by folder and file."""
        found: dict[tuple[str, str], list[int]] = {}
        for key in self.keys:
            if match := _ATTEMPT.fullmatch(key):
                found.setdefault((match["folder"], match["file"]), []).append(int(match["attempt"]))
        return {location: tuple(sorted(attempts)) for location, attempts in found.items()}

    def rounds(self) -> list[int]:
        """The rounds that have a folder, ascending; the base's evaluation is round 0."""
        return sorted({int(match[1]) for key in self.keys if (match := _ROUND.match(key))})

    def sites(self, folder: str) -> list[str]:
        """The names of the subfolders of this folder, sorted."""
        return sorted({key.removeprefix(f"{folder}/").split("/")[0] for key in self.keys if key.startswith(f"{folder}/")})

    def attempts(self, key_of: Callable[[int], str]) -> tuple[int, ...]:
        """The attempts whose key was listed, ascending. `key_of` gives an attempt's key; an attempt that was killed left none."""
        folder, _, file = key_of(0).rsplit("/", 2)
        return self._attempts.get((folder, file), ())


def upload_record(key: str) -> str:
    """Key of the id of the upload in parts of the object with this key."""
    return f"uploads/{key}"


def local_only_folder(site: str) -> str:
    """Prefix of the objects of a site's local-only baseline."""
    return f"comparison/local-only/{site}"

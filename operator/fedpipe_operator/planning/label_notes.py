"""What a plan says of the labels that its sites have: those of one site alone, those spelled in several ways, and sites with a single one.

A label is named only where the site's policy lists it: then the data owner has published it.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from fedpipe_operator.api import SequenceClassificationTask, TaskSpec
from fedpipe_operator.formatting import counted
from fedpipe_operator.sites import SiteProfile

_NAMED_SITES: Final = 10
_NAMED_LABELS: Final = 3
_LONGEST_NAME: Final = 40
_NUMBERS: Final = {"true": "1", "false": "0"}
"""Other spellings of these labels."""


def label_notes(profiles: Mapping[str, SiteProfile], task: TaskSpec, published: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Sentences on what is odd about the labels of a run; none where nothing is.

    Args:
        profiles: of all sites with the run's base, also of those that take no part because of their labels.
        task: of the run.
        published: by site, the labels that its policy lists.
    """
    if not isinstance(task, SequenceClassificationTask):
        return ()
    # The profile of a run that declares labels names these, whatever the rows have.
    of_labels = () if task.labels else (_lone_labels(profiles, published), _spellings(profiles))
    return tuple(filter(None, (*of_labels, _single_labels(profiles))))


def lone_labels(profiles: Mapping[str, SiteProfile]) -> dict[str, list[str]]:
    """By site, the labels that no other site has; sites without one are left out."""
    sites = Counter(label for profile in profiles.values() for label in set(profile.labels))
    found = {name: [label for label in profile.labels if sites[label] == 1] for name, profile in sorted(profiles.items())}
    return {name: labels for name, labels in found.items() if labels}


def _lone_labels(profiles: Mapping[str, SiteProfile], published: Mapping[str, Collection[str]]) -> str:
    lone = lone_labels(profiles) if len(profiles) > 1 else {}
    if not lone:
        return ""
    sites = _listed([f"{len(labels)} at {site}{_named(labels, published.get(site, ()))}" for site, labels in lone.items()])
    total = sum(map(len, lone.values()))
    advice = "declare task.labels in a new run to keep them, or give the sites the same labels"
    return f"{counted(total, 'label')} that one site alone has: {sites}: the run does not learn {'it' if total == 1 else 'them'}; {advice}"


def _named(labels: Sequence[str], published: Collection[str]) -> str:
    """Those of these labels that may be told."""
    known = {label.strip() for label in published}
    told = [repr(label[:_LONGEST_NAME]) for label in labels if label in known]
    more = len(told) - _NAMED_LABELS
    return f" ({', '.join(told[:_NAMED_LABELS])}{f' and {more} more' if more > 0 else ''})" if told else ""


def _spellings(profiles: Mapping[str, SiteProfile]) -> str:
    """That some labels may be the same, as they are spelled alike, wherever they are."""
    labels = {label for profile in profiles.values() for label in profile.labels}
    alike = Counter(map(_normalized, labels))
    same = {label for label in labels if alike[_normalized(label)] > 1}
    if not same:
        return ""
    sites = _listed([site for site, profile in sorted(profiles.items()) if same.intersection(profile.labels)])
    how = "by their spelling alone (capitals, accents, or the form of a number)"
    advice = "if they mean the same, spell them the same in the data"
    return f"{len(same)} of the {len(labels)} labels differ from another one {how}, at {sites}: {advice}"


def _normalized(label: str) -> str:
    visible = "".join(character for character in label if unicodedata.category(character) != "Cf")
    text = " ".join(unicodedata.normalize("NFKC", visible).casefold().split())
    try:
        number = float(text)
    except ValueError:
        return _NUMBERS.get(text, text)
    return str(int(number)) if number.is_integer() else text


def _single_labels(profiles: Mapping[str, SiteProfile]) -> str:
    """That sites have rows of one label only: an answer that never changes is right there."""
    single = sorted(name for name, profile in profiles.items() if 1 in {profile.train_labels, profile.validation_labels})
    if not single:
        return ""
    if len(single) == len(profiles) and all(profile.validation_labels == 1 for profile in profiles.values()):
        found = "the validation rows of every site have a single label, so accuracy is 1 for a model that always answers it"
        return f"{found}: give the sites rows of all labels, or name the column that has the labels in task.label"
    return f"training or validation rows of a single label at {_listed(single)}: accuracy there says little"


def _listed(parts: Iterable[str]) -> str:
    found = list(parts)
    more = f" and {len(found) - _NAMED_SITES} more" if len(found) > _NAMED_SITES else ""
    return ", ".join(found[:_NAMED_SITES]) + more

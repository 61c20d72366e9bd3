"""The training samples of sites, as they count where sites are weighed against each other. Pure."""

from collections.abc import Iterable, Mapping

from fedpipe_operator.shares import counted_samples
from fedpipe_operator.sites import SiteProfile


def counted_train_samples(sites: Mapping[str, SiteProfile], names: Iterable[str]) -> dict[str, int]:
    """By site of these names, in their order; of three or more, none counts with more than all others together."""
    return counted_samples({name: sites[name].train_samples for name in names})

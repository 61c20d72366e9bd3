"""Krum and Multi-Krum (Blanchard et al., NeurIPS 2017): the updates that lie closest to most others are aggregated, the rest is left out.

A site's score is the sum of its n − f − 2 smallest squared distances to other sites, for f malicious sites among n ≥ 2f + 3. Krum takes the
site of the lowest score, Multi-Krum the n − f − 2 lowest (El Mhamdi et al., arXiv 1802.07927); ties go to the first by name.
"""

import numpy as np

from fedpipe_operator.aggregation.factors import Float64


def closest(squared_distances: Float64, malicious: int, keep: int) -> list[int]:
    """The indices of the `keep` sites of the lowest scores, in order of index.

    Args:
        squared_distances: n × n with n ≥ 2f + 3.
        malicious: f.
        keep: 1 for Krum.
    """
    n = len(squared_distances)
    others = squared_distances + np.diag(np.full(n, np.inf))
    scores = np.sort(others, axis=1)[:, : n - malicious - 2].sum(axis=1)
    return sorted(np.argsort(scores, kind="stable")[:keep].tolist())

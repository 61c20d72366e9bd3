"""A site and a run, of both as little as they must have; the run is suspended, so that nothing is done for it."""

from typing import Any, Final

Plain = dict[str, Any]

SITE_DOCUMENT: Final[Plain] = {
    "apiVersion": "fedpipe.io/v1alpha1",
    "kind": "EdgeSite",
    "metadata": {"name": "ward"},
    "spec": {
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "volume": {"persistentVolumeClaim": {"claimName": "rows"}}}
    },
}
RUN_DOCUMENT: Final[Plain] = {
    "apiVersion": "fedpipe.io/v1alpha1",
    "kind": "FederatedFineTune",
    "metadata": {"name": "run"},
    "spec": {
        "model": {"source": "pvc://models/toy"},
        "task": {"type": "SequenceClassification"},
        "planning": {"ranks": [0, 8]},
        "aggregation": {"method": "Exact"},
        "store": {"bucket": "fedpipe", "endpoint": "http://nowhere:9000"},
        "suspend": True,
    },
}

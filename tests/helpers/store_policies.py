"""A store policy, and runs that it allows or not: for the operator's code and for the chart's admission policy, which must decide alike."""

from dataclasses import dataclass
from typing import Any, Final

Plain = dict[str, Any]

HUB: Final = "hf://org/model@main"
LISTS: Final[dict[str, dict[str, list[str]]]] = {
    "endpoints": {"endpoints": ["http://MINIO:9000/", "https://s3.example.com:443", "http://[FD00::1]:09000"]},
    "buckets": {"buckets": ["fedpipe", "models"]},
    "prefixes": {"prefixes": ["runs", "/models/", 'o\'neill <a> "b"']},
    "root": {"prefixes": ["/"]},
    "anything": {},
    "*": {"endpoints": ["AWS"], "buckets": ["fedpipe"], "prefixes": ["runs/wards"]},
}
"""By namespace: a value of the chart. `elsewhere` has no rule of its own."""
NAMESPACES: Final = (*(name for name in LISTS if name != "*"), "elsewhere")


@dataclass(frozen=True)
class Case:
    """What a run of this namespace names, and the problem: empty if the policy allows it."""

    namespace: str
    problem: str = ""
    endpoint: str | None = None
    """None: the run names none."""
    trainer_endpoint: str | None = None
    bucket: str = "fedpipe"
    """Empty: the run names no store; the operator's default is none of its choice."""
    prefix: str = "runs"
    source: str = HUB
    tracking_uri: str = ""
    """Empty: the run has no tracker."""

    @property
    def spec(self) -> Plain:
        """The fields of the run's spec."""
        store = {"bucket": self.bucket, "prefix": self.prefix} | ({"endpoint": self.endpoint} if self.endpoint else {})
        store |= {"trainerEndpoint": self.trainer_endpoint} if self.trainer_endpoint else {}
        tracking = {"mlflow": {"trackingUri": self.tracking_uri}} if self.tracking_uri else {}
        return {"store": store if self.bucket else None, "model": {"source": self.source}, "tracking": tracking}


def _endpoint(endpoint: str | None, *, is_allowed: bool = False) -> Case:
    allowed = ", ".join(LISTS["endpoints"]["endpoints"])
    problem = f"spec.store.endpoint {endpoint or 'AWS'} is none of the endpoints that the operator's policy allows here: {allowed}"
    return Case("endpoints", "" if is_allowed else problem, endpoint)


def _tracker(tracking_uri: str, *, is_allowed: bool = False) -> Case:
    allowed = ", ".join(LISTS["endpoints"]["endpoints"])
    where = f"spec.tracking.mlflow.trackingUri {tracking_uri}"
    problem = f"{where} is at none of the endpoints that the operator's policy allows here: {allowed}"
    return Case("endpoints", "" if is_allowed else problem, "http://minio:9000", tracking_uri=tracking_uri)


def _bucket(field: str, bucket: str) -> str:
    return f"{field}: the bucket {bucket} is none that the operator's policy allows here: fedpipe, models"


def _prefix(field: str, prefix: str) -> str:
    return f"{field}: the prefix '{prefix}' lies in none that the operator's policy allows here: runs, /models/, o'neill <a> \"b\""


_STORE, _MODEL = "spec.store", "spec.model.source"
CASES: Final = (
    *(
        _endpoint(one, is_allowed=True)
        for one in (
            *("http://minio:9000", "http://MinIO:9000", "http://minio:09000", "https://s3.example.com", "https://S3.example.com:443"),
            "http://[fd00::1]:9000",
        )
    ),
    *(
        _endpoint(one)
        for one in (
            *(None, "https://minio:9000", "http://minio:9001", "http://minio", "http://minio.evil:9000", "http://s3.example.com"),
            *(
                "https://s3.example.com:80",
                "https://s3.example.com:4430",
                "http://[fd00::2]:9000",
                "http://[fd00::1]",
                "http://minio:900000",
            ),
            *("http://minio:9000@evil", "http://evil\\@minio:9000", "http://evil#@minio:9000", "http://evil?@minio:9000"),
            *("http://user@minio:9000", "http://minio:9000?x", "http://minio:9000#x", "http://minio:", "http://m\u0131nio:9000"),
        )
    ),
    Case("endpoints", endpoint="http://minio:9000", trainer_endpoint="https://s3.example.com"),
    Case("endpoints", endpoint="http://minio:9000", trainer_endpoint="http://MINIO:9000"),
    Case(
        "endpoints",
        "spec.store.trainerEndpoint http://evil:9000 is none of the endpoints that the operator's policy allows here: "
        + ", ".join(LISTS["endpoints"]["endpoints"]),
        endpoint="http://minio:9000",
        trainer_endpoint="http://evil:9000",
    ),
    *(_tracker(one, is_allowed=True) for one in ("https://s3.example.com", "https://S3.example.com:443/mlflow/", "http://[fd00::1]:9000/")),
    *(
        _tracker(one)
        for one in ("http://s3.example.com", "https://s3.example.com:8443", "https://s3.example.com.evil/mlflow", "http://mlflow:5000")
    ),
    Case("anything", tracking_uri="http://mlflow.mlflow:5000"),
    Case("buckets", tracking_uri="http://mlflow.mlflow:5000"),
    Case("endpoints", bucket=""),
    Case("buckets", bucket=""),
    Case("buckets", _bucket(_MODEL, "other-team"), bucket="", source="s3://other-team/toy"),
    Case("prefixes", bucket=""),
    Case("buckets"),
    Case("buckets", bucket="models"),
    Case("buckets", _bucket(_STORE, "other-team"), bucket="other-team"),
    Case("buckets", _bucket(_STORE, "fedpipe-of-others"), bucket="fedpipe-of-others"),
    Case("buckets", source="s3://models/toy"),
    Case("buckets", _bucket(_MODEL, "other-team"), source="s3://other-team/toy"),
    Case("buckets", source="pvc://other-team/toy"),
    Case("prefixes"),
    Case("prefixes", prefix="runs/wards"),
    Case("prefixes", prefix="models"),
    Case("prefixes", _prefix(_STORE, "run"), prefix="run"),
    Case("prefixes", _prefix(_STORE, "runs-of-others"), prefix="runs-of-others"),
    Case("prefixes", _prefix(_STORE, "others/runs"), prefix="others/runs"),
    Case("prefixes", _prefix(_STORE, ""), prefix=""),
    Case("prefixes", source="s3://anywhere/models/toy"),
    Case("prefixes", source="s3://anywhere//models"),
    Case("prefixes", source='s3://anywhere/o\'neill <a> "b"/toy'),
    Case("prefixes", _prefix(_MODEL, "models-of-others/toy"), source="s3://anywhere/models-of-others/toy"),
    Case("prefixes", _prefix(_MODEL, "toy"), source="s3://anywhere/toy"),
    Case("root", prefix=""),
    Case("root", "spec.store: the prefix 'runs' lies in none that the operator's policy allows here: /"),
    Case("anything", endpoint="http://elsewhere:1", bucket="any", prefix="", source="s3://any/folder"),
    Case("elsewhere", prefix="runs/wards"),
    Case("elsewhere", "spec.store.endpoint http://minio:9000 is none", endpoint="http://minio:9000", prefix="runs/wards"),
    Case("elsewhere", "spec.store: the bucket models is none", bucket="models", prefix="runs/wards"),
    Case("elsewhere", "spec.store: the prefix 'runs' lies in none that the operator's policy allows here: runs/wards"),
)

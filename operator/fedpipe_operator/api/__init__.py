"""The API: two kinds as frozen values. Parse, dump, defaults, and every word users see, spelled once."""

from fedpipe_operator.api.conditions import ConditionType, Reason
from fedpipe_operator.api.edgesite import Capacity, EdgeSite, EdgeSiteSpec, SiteData
from fedpipe_operator.api.finetune import (
    LOWER_IS_BETTER,
    AggregationMethod,
    DeletionPolicy,
    FederatedFineTune,
    FineTuneSpec,
    FineTuneStatus,
    MetricName,
    MetricStatus,
    PlanningMode,
    PlanningSpec,
    PlanStatus,
    RoundStatus,
    StoreSpec,
    Target,
    UpdatesStatus,
    primary_metric,
)
from fedpipe_operator.api.meta import API_VERSION, GROUP, Condition, ConditionStatus, Metadata
from fedpipe_operator.api.quantities import amount, seconds

__all__ = [
    "API_VERSION",
    "GROUP",
    "LOWER_IS_BETTER",
    "AggregationMethod",
    "Capacity",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "DeletionPolicy",
    "EdgeSite",
    "EdgeSiteSpec",
    "FederatedFineTune",
    "FineTuneSpec",
    "FineTuneStatus",
    "Metadata",
    "MetricName",
    "MetricStatus",
    "PlanStatus",
    "PlanningMode",
    "PlanningSpec",
    "Reason",
    "RoundStatus",
    "SiteData",
    "StoreSpec",
    "Target",
    "UpdatesStatus",
    "amount",
    "primary_metric",
    "seconds",
]

"""The only door to Kubernetes: Jobs, pods and nodes in, Jobs, Secrets, status and events out.

`runs` and `sites` are one turn each for a `FederatedFineTune` and an `EdgeSite`; the work queue calls them. What the watch
brings is reduced to small values (`seen`) and handed to a turn whole, so that a turn sees one moment.
"""

from fedpipe_operator.cluster.api import Api, in_cluster
from fedpipe_operator.cluster.runs import Runs, RunView
from fedpipe_operator.cluster.seen import KubeJob, kube_job, kube_node
from fedpipe_operator.cluster.sites import Sites, SiteView

__all__ = ["Api", "KubeJob", "RunView", "Runs", "SiteView", "Sites", "in_cluster", "kube_job", "kube_node"]

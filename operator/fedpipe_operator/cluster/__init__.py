"""The only door to Kubernetes: Jobs, pods and nodes in, Jobs, Secrets, status and events out.

`runs` and `sites` are one turn each for a `FederatedFineTune` and an `EdgeSite`; the work queue calls them. What the watch
brings is reduced to small values (`seen`) and handed to a turn whole, so that a turn sees one moment.
"""

from fedpipe_operator.cluster.api import Api, in_cluster
from fedpipe_operator.cluster.objects import KubeJob, kube_job, kube_node
from fedpipe_operator.cluster.run_reconciler import RunReconciler, RunView
from fedpipe_operator.cluster.site_reconciler import SiteReconciler, SiteView

__all__ = ["Api", "KubeJob", "RunReconciler", "RunView", "SiteReconciler", "SiteView", "in_cluster", "kube_job", "kube_node"]

"""The job backend on Kubernetes, the only user of its API: Jobs, pods and nodes in, Jobs, Secrets, status and events out.

`run_reconciler` and `site_reconciler` reconcile one `FederatedFineTune` and one `EdgeSite`; the work queue calls them. What the
watches deliver is reduced to small values (`objects`) and passed in as one view, so that a reconcile sees one moment.
"""

from fedpipe_operator.cluster.api import Api, in_cluster
from fedpipe_operator.cluster.objects import KubeJob, kube_job, kube_node
from fedpipe_operator.cluster.run_reconciler import RunReconciler, RunView
from fedpipe_operator.cluster.site_reconciler import SiteReconciler, SiteView

__all__ = ["Api", "KubeJob", "RunReconciler", "RunView", "SiteReconciler", "SiteView", "in_cluster", "kube_job", "kube_node"]

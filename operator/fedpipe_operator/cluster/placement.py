"""The cluster's map: what a pod has mounted where, and what it may use."""

from dataclasses import dataclass

from fedpipe_operator.api import EdgeSite, amount
from fedpipe_operator.backend import Limits
from fedpipe_operator.manifests.trainer import CLAIM_SCHEME, DATA_FOLDER, MODEL_FOLDER
from fedpipe_operator.reconcile.tasks import TaskInputs, url_seconds
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials, model_in_bucket
from fedpipe_trainer.contract import Data, Model

_S3 = "s3://"


@dataclass(frozen=True)
class ClusterPlacement:
    """The cluster's `Placement` for one run."""

    credentials: Credentials | None

    def inputs(self, run: Run, site: str) -> TaskInputs:
        """Where a trainer of this site finds model and data; site "" needs the model alone."""
        return TaskInputs(model=self._model(run), data=_data(site_of(run, site)) if site else None)

    def limits(self, run: Run, site: str) -> Limits:
        """The site's claimed memory and cores; none for the run's own work."""
        if not site:
            return Limits()
        capacity = site_of(run, site).spec.capacity
        return Limits(
            memory_bytes=int(amount(capacity.memory)) if capacity.memory else None,
            cpus=max(1, int(amount(capacity.cpu))) if capacity.cpu else None,
        )

    def _model(self, run: Run) -> Model:
        source, store = run.spec.model.source, run.spec.store
        if source.startswith(CLAIM_SCHEME):
            return Model(source=f"file://{MODEL_FOLDER}/{source.removeprefix(CLAIM_SCHEME).partition('/')[2]}")
        if source.startswith(_S3):
            return model_in_bucket(
                source, endpoint=store.endpoint, region=store.region, seconds=url_seconds(run.spec), credentials=self.credentials
            )
        return Model(source=source)


def site_of(run: Run, name: str) -> EdgeSite:
    """The run's site of this name."""
    return next(site for site in run.sites if site.name == name)


def _data(site: EdgeSite) -> Data:
    data = site.spec.data
    return Data(train=f"{DATA_FOLDER}/{data.train}", validation=f"{DATA_FOLDER}/{data.validation}")

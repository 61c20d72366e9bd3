"""Where models and data are on this machine: a claim `X` of the YAML is the folder `<volumes>/X`."""

from dataclasses import dataclass
from pathlib import Path

from fedpipe_operator.api import EdgeSite, amount
from fedpipe_operator.backend import Limits
from fedpipe_operator.reconcile.tasks import TaskInputs, url_seconds
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import model_in_bucket
from fedpipe_trainer.contract import Data, Model

_PVC = "pvc://"
_S3 = "s3://"


@dataclass(frozen=True)
class LocalPlacement:
    """The local door's map: folders below `volumes` stand for PersistentVolumeClaims."""

    volumes: Path

    def inputs(self, run: Run, site: str) -> TaskInputs:
        """Where a trainer of this site finds model and data; site "" needs the model alone."""
        return TaskInputs(model=self._model(run), data=self._data(_site(run, site)) if site else None)

    def limits(self, run: Run, site: str) -> Limits:
        """The site's claimed memory and cores; none for the run's own work."""
        if not site:
            return Limits(memory_bytes=None, cpus=None)
        capacity = _site(run, site).spec.capacity
        return Limits(
            memory_bytes=int(amount(capacity.memory)) if capacity.memory else None,
            cpus=max(1, int(amount(capacity.cpu))) if capacity.cpu else None,
        )

    def _model(self, run: Run) -> Model:
        source = run.spec.model.source
        if source.startswith(_PVC):
            return Model(source=f"file://{self.volumes.resolve() / source.removeprefix(_PVC)}")
        if source.startswith(_S3):
            store = run.spec.store
            return model_in_bucket(source, endpoint=store.endpoint, region=store.region, seconds=url_seconds(run.spec))
        return Model(source=source)

    def _data(self, site: EdgeSite) -> Data:
        data = site.spec.data
        volume = self.volumes.resolve() / data.volume.persistent_volume_claim.claim_name
        return Data(train=str(volume / data.train), validation=str(volume / data.validation))


def _site(run: Run, name: str) -> EdgeSite:
    return next(site for site in run.sites if site.name == name)

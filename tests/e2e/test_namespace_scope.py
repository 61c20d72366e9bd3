"""An operator that is restricted to one namespace serves that one and no other."""

from dataclasses import replace

import pytest
from cluster_user import FFT
from crds import default_status
from fleet_namespace import SHORT, FleetNamespace, OpenNamespace

pytestmark = pytest.mark.e2e


def test_an_operator_restricted_to_a_namespace_serves_that_one_and_no_other(
    namespace: FleetNamespace, open_namespace: OpenNamespace
) -> None:
    with open_namespace("e2e-elsewhere") as elsewhere, namespace.served_by_its_own_operator({"watchNodes": False}) as served:
        of_its_class = replace(elsewhere, operator=served.operator)  # so that no other operator serves them
        of_its_class.start("north", **SHORT)
        served.start("north", ttlSecondsAfterFinished=10, **SHORT)
        run = served.wait_until_complete()
        served.wait("the run is deleted after its TTL", lambda: served.kubectl.list(FFT) == [])

        assert of_its_class.get_run()["status"] == default_status("FederatedFineTune")
        assert served.store_of(run).list() != []

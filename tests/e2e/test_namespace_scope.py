"""An operator that is restricted to one namespace serves that one and no other."""

import pytest
from cluster_user import FFT
from crds import default_status
from fleet_namespace import SHORT, FleetNamespace, OpenNamespace

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]


def test_an_operator_restricted_to_a_namespace_serves_that_one_and_no_other(
    namespace: FleetNamespace, open_namespace: OpenNamespace
) -> None:
    with open_namespace("e2e-elsewhere") as elsewhere:
        namespace.operator.upgrade({"rbac.scope": "namespaces", "namespaces": [namespace.name], "watchNodes": False})
        try:
            elsewhere.start("north", **SHORT)
            namespace.start("north", ttlSecondsAfterFinished=10, **SHORT)
            run = namespace.wait_until_complete()
            namespace.wait("the run is deleted after its TTL", lambda: namespace.kubectl.list(FFT) == [])
            assert elsewhere.get_run()["status"] == default_status("FederatedFineTune")
        finally:
            namespace.operator.upgrade()

        assert namespace.store_of(run).list() != []

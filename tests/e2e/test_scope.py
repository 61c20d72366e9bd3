"""An operator that may see one namespace alone serves it, and leaves the others be."""

import pytest
from cluster_user import FFT
from crds import default_status
from wards import SHORT, Ward, WardCalled

pytestmark = pytest.mark.e2e


def test_an_operator_confined_to_a_namespace_does_all_its_work_there_and_none_elsewhere(ward: Ward, ward_called: WardCalled) -> None:
    with ward_called("e2e-elsewhere") as elsewhere:
        ward.operator.upgrade({"rbac.scope": "namespaces", "namespaces": [ward.name], "watchNodes": False})
        try:
            elsewhere.start("north", **SHORT)
            ward.start("north", ttlSecondsAfterFinished=10, **SHORT)
            run = ward.wait_until_complete()
            ward.wait("the run goes in its time", lambda: ward.kubectl.list(FFT) == [])
            assert elsewhere.look()["status"] == default_status("FederatedFineTune")
        finally:
            ward.operator.upgrade()

        assert ward.store_of(run).list() != []

"""How tools compute an object's health from its status: kstatus (Flux, `helm --wait`) and `kubectl wait`, as their sources do."""

from typing import Any

Plain = dict[str, Any]


def kstatus(body: Plain) -> str:
    """Current, InProgress, Failed or Terminating, as `status.Compute` of sigs.k8s.io/cli-utils does for a custom resource.

    Its rules, in their order (`checkGenericProperties`, then `checkReadyCondition`): an object that is being deleted is Terminating; an
    observed generation that is another one than the object's is InProgress, and none at all is not looked at; `Reconciling` True is
    InProgress and `Stalled` True is Failed; then `Ready` decides, False and Unknown alike being InProgress; without it, it is Current.
    """
    status = body.get("status", {})
    conditions = {one["type"]: one["status"] for one in status.get("conditions", ())}
    if "deletionTimestamp" in body["metadata"]:
        return "Terminating"
    if status.get("observedGeneration", body["metadata"]["generation"]) != body["metadata"]["generation"]:
        return "InProgress"
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "InProgress" if conditions.get("Ready", "True") != "True" else "Current"


def is_met(body: Plain, condition: str) -> bool:
    """Whether `kubectl wait --for=condition=…` returns: the condition is True, and of the newest generation."""
    status = body.get("status", {})
    for one in status.get("conditions", ()):
        if one["type"].lower() == condition.lower():
            observed = one.get("observedGeneration", status.get("observedGeneration", body["metadata"]["generation"]))
            return bool(one["status"] == "True" and observed >= body["metadata"]["generation"])
    return False

"""How a pod reaches a store and a hub: the certificates that it trusts, the proxy, the mirror, the token that it shows."""

from typing import Any, Final

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.api.pod_template import ConfigMapFile
from fedpipe_operator.pod_settings import CaBundle, Proxy, SecretKey

Plain = dict[str, Any]

HUB_SCHEME: Final = "hf://"
_HUB_ACCESS: Final = "HF_TOKEN"
"""The variable of the hub's client, and the key of a site's own Secret. It is fixed, so that a site can name no other Secret."""
_HUB_ADDRESS: Final = "HF_ENDPOINT"
_CA_FOLDER: Final = "/etc/fedpipe/ca"
_CA_FILE: Final = "ca.crt"
_CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Where httpx (the trainer's transfers and the hub's client), requests and boto3 look for the certificates that they trust."""


def certificates_of(bundle: CaBundle) -> ConfigMapFile | None:
    """The file of the administrator's certificates; None if there is none."""
    return ConfigMapFile(name=bundle.config_map_name, key=bundle.key) if bundle.config_map_name else None


def with_certificates(pod: Plain, file: ConfigMapFile | None) -> Plain:
    """The pod that trusts the certificates of this file, if there is one."""
    if file is None:
        return pod
    (container,) = pod["containers"]
    volume = {"name": "ca", "configMap": {"name": file.name, "items": [{"key": file.key, "path": _CA_FILE}]}}
    mount = {"name": "ca", "mountPath": _CA_FOLDER, "readOnly": True}
    variables = [{"name": name, "value": f"{_CA_FOLDER}/{_CA_FILE}"} for name in _CA_VARIABLES]
    container = container | {
        "env": [*container["env"], *variables],
        "volumeMounts": [*container["volumeMounts"], mount],
    }
    return pod | {"containers": [container], "volumes": [*pod["volumes"], volume]}


def proxy_variables(proxy: Proxy) -> list[Plain]:
    """The variables by which urllib, httpx, requests and boto3 find a proxy; none for what was not given."""
    given = {"HTTP_PROXY": proxy.http, "HTTPS_PROXY": proxy.https, "NO_PROXY": proxy.no_proxy}
    return [{"name": name, "value": value} for name, value in given.items() if value]


def endpoint_variables(source: str, endpoint: str) -> list[Plain]:
    """The variable by which the hub's client finds a mirror, for a pod whose model `source` is a hub's; none without one."""
    return [{"name": _HUB_ADDRESS, "value": endpoint}] if endpoint and source.startswith(HUB_SCHEME) else []


def token_variables(source: str, token: SecretKey, site: EdgeSite | None = None) -> list[Plain]:
    """The variable with the hub's token, for a pod whose model `source` is a hub's: of the site's own Secret, else of the chart's.

    Without the chart's Secret the pod starts without a token. The site's has to be there: it names it itself.
    """
    if not source.startswith(HUB_SCHEME):
        return []
    if site is not None and (own := site.spec.hugging_face_token_secret_ref) is not None:
        return [{"name": _HUB_ACCESS, "valueFrom": {"secretKeyRef": {"name": own.name, "key": _HUB_ACCESS}}}]
    if not token.name:
        return []
    return [{"name": _HUB_ACCESS, "valueFrom": {"secretKeyRef": {"name": token.name, "key": token.key, "optional": True}}}]


def with_defaults(pod: Plain, variables: list[Plain]) -> Plain:
    """The pod with these variables, except those that it has: what a site gives its own trainers counts."""
    (container,) = pod["containers"]
    taken = {one["name"] for one in container["env"]}
    return pod | {"containers": [container | {"env": [*(one for one in variables if one["name"] not in taken), *container["env"]]}]}

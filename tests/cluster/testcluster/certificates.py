"""The cluster's certificate authority, two certificates that it signs, and the service accounts' key; created by openssl."""

from testcluster.layout import API_SERVICE, DOMAIN, HOST, Layout
from testcluster.shell import run

_API_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}", "localhost")
_API_ADDRESSES = (HOST, API_SERVICE, "127.0.0.1")


def request(*, name: str, organisation: str, extensions: dict[str, str]) -> str:
    """An openssl configuration for one certificate."""
    extension_lines = "\n".join(f"{key} = {value}" for key, value in extensions.items())
    return f"""[req]
prompt = no
distinguished_name = subject
x509_extensions = extensions
[subject]
O = {organisation}
CN = {name}
[extensions]
{extension_lines}
"""


def api_names() -> str:
    """The names and addresses in the API server's certificate."""
    return ",".join([f"DNS:{name}" for name in _API_NAMES] + [f"IP:{address}" for address in _API_ADDRESSES])


def make_all(layout: Layout) -> None:
    """Create the certificates and keys that do not exist."""
    _certify(layout, "ca", request(name="fedpipe-test", organisation="fedpipe", extensions=_authority()))
    served = {"basicConstraints": "CA:FALSE", "extendedKeyUsage": "serverAuth", "subjectAltName": api_names()}
    _certify(layout, "api", request(name="kube-apiserver", organisation="fedpipe", extensions=served))
    asking = {"basicConstraints": "CA:FALSE", "extendedKeyUsage": "clientAuth"}
    _certify(layout, "api-to-kubelet", request(name="kube-apiserver", organisation="system:masters", extensions=asking))
    if not layout.key("service-accounts").exists():
        run("openssl", "genrsa", "-out", layout.key("service-accounts"), "2048")


def _authority() -> dict[str, str]:
    return {"basicConstraints": "critical,CA:TRUE", "keyUsage": "critical,keyCertSign,cRLSign", "subjectKeyIdentifier": "hash"}


def _certify(layout: Layout, name: str, wanted: str) -> None:
    certificate, key = layout.certificate(name), layout.key(name)
    if certificate.exists():
        return
    certificate.parent.mkdir(parents=True, exist_ok=True)
    config = certificate.with_suffix(".conf")
    config.write_text(wanted)
    signed_by = () if name == "ca" else ("-CA", str(layout.certificate("ca")), "-CAkey", str(layout.key("ca")))
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key))
    run("openssl", "req", "-x509", "-config", config, *new_key, *signed_by, "-days", "3650", "-out", certificate)

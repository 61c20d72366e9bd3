"""Whether the certificates that this process is told to trust can be read: asked once, at its start."""

import ssl
from collections.abc import Mapping
from typing import Final

_VARIABLE: Final = "SSL_CERT_FILE"
"""The chart sets it with those that other libraries read, to the same file."""


def certificates_problem(environ: Mapping[str, str]) -> str | None:
    """Why no TLS connection can succeed with the certificates that these variables name; None if they can be read, or none are named.

    A library reads the file when it first connects, and what it then says names neither the file nor its setting.
    """
    path = environ.get(_VARIABLE)
    if not path:
        return None
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # of the file, or of what is in it
        what = f"the certificates in {path} ({_VARIABLE}) cannot be read: {error.strerror or error}"
        return f"{what}. Write PEM certificates (-----BEGIN CERTIFICATE-----) into the key of the ConfigMap that the value caBundle names"
    return None

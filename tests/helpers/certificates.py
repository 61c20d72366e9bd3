"""Certificates of a CA that nobody knows."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBLzCB1qADAgECAgEBMAoGCCqGSM49BAMCMBYxFDASBgNVBAMMC25vYm9keSdz
IENBMCAXDTI0MDEwMTAwMDAwMFoYDzIxMjQwMTAxMDAwMDAwWjAWMRQwEgYDVQQD
DAtub2JvZHkncyBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABAX6f+drBzup
KXO+yALXDxX/2/y5r70rWEm8+cAwY5qRxGTPZggI97xmZNWq+Btrk4BihFaNIx2n
fuH5RurEqlSjEzARMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIg
GmdBV/I8LqQ5/xYW4lITtihhUnltVfqd2nUqjUTAW5YCIQDFNGmtO9SSEzktZ1oX
5ftHv1BvA5RL2aWqJzMV24zgwg==
-----END CERTIFICATE-----
"""
"""The certificate of a CA whose key nobody has: always the same, so that it can be in a test's name."""


def certificate(folder: Path, host: str = "127.0.0.1") -> Path:
    """A self-signed certificate for this address, with its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()) + made.public_bytes(encoding)
    file = folder / "store.pem"
    file.write_bytes(pem)
    return file

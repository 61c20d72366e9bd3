"""How this machine reaches package indexes, handed to a build while it runs and kept in no image."""

import ast
import os
import re
import shutil
import sys
from pathlib import Path

from testcluster.shell import try_to_run
from testcluster.versions import DEBIAN_SUITE

_PASSED_ON = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries")
_CERTIFICATES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
_CA = "/run/secrets/ca.pem"


def secrets(folder: Path) -> dict[str, Path]:
    """Files for a build's secrets: pip's settings, and the certificates that this machine trusts if it names any."""
    certificates = certificates_named(os.environ)
    files = {"pip": folder / "pip.conf"}
    files["pip"].write_text(pip_conf(try_to_run(sys.executable, "-m", "pip", "config", "list"), ca=_CA if certificates else ""))
    if certificates:
        files["ca"] = Path(shutil.copy(certificates, folder / "ca.pem"))
    return files


def certificates_named(environ: dict[str, str] | os._Environ[str]) -> str:
    """The file of certificates that the environment names; empty if none."""
    return next((environ[name] for name in _CERTIFICATES if environ.get(name) and Path(environ[name]).is_file()), "")


def pip_conf(listing: str, *, ca: str = "") -> str:
    """From `pip config list`, a pip.conf for a build: what says where packages are, and nothing of this machine's folders."""
    found: dict[str, str] = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
        setting, _, value = line.partition("=")
        name = setting.rpartition(".")[2]
        if name in _PASSED_ON:
            found[name] = str(ast.literal_eval(value)).replace("\n", " ")
    if ca:
        found["cert"] = ca
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in found.items())


def debian_mirror() -> tuple[str, ...]:
    """The mirror that this machine's apt uses for the suite; nothing if it uses none, for debootstrap knows one."""
    listing = try_to_run("apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(SITE)", "Created-By: Packages")
    return mirror_in(listing)


def mirror_in(listing: str) -> tuple[str, ...]:
    """From lines of suite, component and address, the address of the suite itself."""
    rows = [line.split() for line in listing.splitlines()]
    return next(((row[2],) for row in rows if row[:2] == [DEBIAN_SUITE, "main"]), ())


def apt_environment() -> dict[str, str]:
    """The proxy that apt is told of, as debootstrap reads it."""
    said = re.search(r"^Acquire::http::Proxy \"(.+)\";", try_to_run("apt-config", "dump"), re.MULTILINE)
    return {"http_proxy": said[1]} if said else {}

"""This machine's package index settings, passed to image builds as secrets, so that no image contains them."""

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
    """Files for a build's secrets: pip's settings and, if the environment names one, a file of trusted certificates."""
    certificates = certificates_named(os.environ)
    files = {"pip": folder / "pip.conf"}
    files["pip"].write_text(pip_conf(try_to_run(sys.executable, "-m", "pip", "config", "list"), ca=_CA if certificates else ""))
    if certificates:
        files["ca"] = Path(shutil.copy(certificates, folder / "ca.pem"))
    return files


def certificates_named(environ: dict[str, str] | os._Environ[str]) -> str:
    """The certificate file that the environment names; empty if none."""
    return next((environ[name] for name in _CERTIFICATES if environ.get(name) and Path(environ[name]).is_file()), "")


def pip_conf(listing: str, *, ca: str = "") -> str:
    """A pip.conf for a build, from `pip config list`: the settings that locate packages, without this machine's folders."""
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
    """The mirror that this machine's apt uses for the suite; empty if none, so that debootstrap uses its default."""
    listing = try_to_run("apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(SITE)", "Created-By: Packages")
    return mirror_in(listing)


def mirror_in(listing: str) -> tuple[str, ...]:
    """The address of the suite's component main, from lines of suite, component and address."""
    rows = [line.split() for line in listing.splitlines()]
    return next(((row[2],) for row in rows if row[:2] == [DEBIAN_SUITE, "main"]), ())


def apt_environment() -> dict[str, str]:
    """apt's proxy, as the environment variable that debootstrap reads."""
    proxy = re.search(r"^Acquire::http::Proxy \"(.+)\";", try_to_run("apt-config", "dump"), re.MULTILINE)
    return {"http_proxy": proxy[1]} if proxy else {}

"""The Debian packages that the cluster needs, installed where they are missing."""

import os

from testcluster.preflight import is_there, missing_packages
from testcluster.shell import ClusterError, run

_QUIET = ("-qq", "-o", "Dpkg::Use-Pty=0")


def install() -> None:
    """Install what is missing, without a question; where init scripts start services, those that come along are not started."""
    missing = missing_packages(is_there)
    if not missing:
        return
    if not is_there("apt-get"):
        raise ClusterError(f"Install {', '.join(missing)}: there is no apt-get here to do it with")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    run("apt-get", "update", *_QUIET, env=env)
    run("apt-get", "install", "--yes", "--no-install-recommends", *_QUIET, *missing, env=env)
    if still := missing_packages(is_there):
        raise ClusterError(f"apt-get installed {', '.join(missing)}, and yet the programs of {', '.join(still)} are not there")
    print(f"installed {', '.join(missing)}", flush=True)

"""Installs the Debian packages that the cluster needs."""

import os

from testcluster.preflight import is_there, missing_packages
from testcluster.shell import ClusterError, run

_QUIET = ("-qq", "-o", "Dpkg::Use-Pty=0")


def install() -> None:
    """Install the missing packages without prompts, and without starting the services that their init scripts would start."""
    missing = missing_packages(is_there)
    if not missing:
        return
    if not is_there("apt-get"):
        raise ClusterError(f"Install {', '.join(missing)}: this machine has no apt-get to install them with")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    run("apt-get", "update", *_QUIET, env=env)
    run("apt-get", "install", "--yes", "--no-install-recommends", *_QUIET, *missing, env=env)
    if still := missing_packages(is_there):
        raise ClusterError(f"apt-get installed {', '.join(missing)}, but the programs of {', '.join(still)} are still missing")
    print(f"installed {', '.join(missing)}", flush=True)

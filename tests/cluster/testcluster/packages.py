"""Installs the Debian packages that the cluster needs, and unpacks one whose programs the tests start themselves."""

import os
import shutil
import tempfile
from pathlib import Path

from testcluster.layout import Layout
from testcluster.preflight import is_there, missing_packages
from testcluster.shell import ClusterError, locked, run
from testcluster.versions import UNPACKED_PACKAGE, UNPACKED_PROGRAMS

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


def unpacked(layout: Layout, program: str) -> Path:
    """The path of a program of the unpacked package, there or not."""
    return layout.cache / UNPACKED_PACKAGE / program


def unpack(layout: Layout) -> None:
    """Download the package from Debian, as `apt-get` verifies it, and keep its programs; do nothing if they are there."""
    with locked(layout.cache / "packages.lock"):
        if all(unpacked(layout, program).exists() for program in UNPACKED_PROGRAMS):
            return
        with tempfile.TemporaryDirectory(dir=layout.cache) as folder:
            _download(Path(folder))
            (archive,) = Path(folder).glob("*.deb")
            run("dpkg-deb", "--extract", archive, folder)
            for program in UNPACKED_PROGRAMS:
                unpacked(layout, program).parent.mkdir(exist_ok=True)
                shutil.move(Path(folder) / "usr" / "bin" / program, unpacked(layout, program))
    print(f"unpacked {', '.join(UNPACKED_PROGRAMS)}", flush=True)


def _download(folder: Path) -> None:
    """Fetch the package into this folder; apt's own user may not write there."""
    if not is_there("apt-get"):
        raise ClusterError(f"This machine has no apt-get to download {UNPACKED_PACKAGE} with")
    run("apt-get", "update", *_QUIET)
    run("apt-get", "download", *_QUIET, "-o", "APT::Sandbox::User=root", UNPACKED_PACKAGE, cwd=folder)

"""Versions: each program's is read from the go.mod that builds it; the others are defined here."""

import re
from dataclasses import dataclass
from pathlib import Path

PROGRAMS_FOLDER = Path(__file__).parents[1] / "programs"

GO = (1, 26)
"""The oldest Go that the modules of `programs/` accept."""

DEBIAN_SUITE = "bookworm"
"""The Debian release of the base image, and of the packages that are installed on the machine."""

DEBIAN_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "iptables": "iptables",
    "nftables": "nft",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "iproute2": "ip",
    "mount": "mount",
    "openssl": "openssl",
    "buildah": "buildah",
    "golang-github-containers-common": "/etc/containers/policy.json",
    "debootstrap": "debootstrap",
}
"""Each package with a program or file that exists if it is installed."""

UNPACKED_PACKAGE = "prometheus"
"""A package of which only programs are needed. It is unpacked and not installed: once installed, its service takes the port 9090."""
UNPACKED_PROGRAMS = ("prometheus", "promtool")

_VERSION_PACKAGE = "k8s.io/component-base/version"
_GIT_VERSION = (
    f"-X {_VERSION_PACKAGE}.gitVersion={{version}} -X {_VERSION_PACKAGE}.gitMajor={{major}} -X {_VERSION_PACKAGE}.gitMinor={{minor}}"
)


@dataclass(frozen=True)
class Program:
    """A program that is built here, by the Go module in the folder `programs/<module>`."""

    name: str
    module: str
    package: str
    """The argument of `go build`."""
    path: str
    """The module in go.mod whose version is the program's; empty for a program of ours."""
    linker_flags: str = ""

    @property
    def folder(self) -> Path:
        """The Go module that builds it."""
        return PROGRAMS_FOLDER / self.module

    @property
    def version(self) -> str:
        """The version that go.mod requires."""
        return required_version((self.folder / "go.mod").read_text(), self.path) if self.path else "v1"

    @property
    def flags(self) -> str:
        """The linker flags, with the version that the program reports."""
        major, minor = self.version.removeprefix("v").split(".")[:2] if self.path else ("1", "0")
        return f"-s -w {self.linker_flags.format(version=self.version, major=major, minor=minor)}".strip()


def required_version(go_mod: str, path: str) -> str:
    """The version of the module `path` that this go.mod requires."""
    found = re.search(rf"^(?:require\s+|\t){re.escape(path)} (\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise LookupError(f"go.mod requires no {path}")
    return found[1]


def _kubernetes(name: str) -> Program:
    return Program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", "k8s.io/kubernetes", _GIT_VERSION)


PROGRAMS = {
    program.name: program
    for program in (
        _kubernetes("kube-apiserver"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        _kubernetes("kubelet"),
        _kubernetes("kube-proxy"),
        _kubernetes("kubectl"),
        Program("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
        Program("registry", "registry", "github.com/distribution/distribution/v3/cmd/registry", "github.com/distribution/distribution/v3"),
        Program("coredns", "coredns", "github.com/coredns/coredns", "github.com/coredns/coredns"),
        Program("minio", "minio", "github.com/minio/minio", "github.com/minio/minio"),
        Program("helm", "helm", "helm.sh/helm/v4/cmd/helm", "helm.sh/helm/v4"),
        Program("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok", "sigs.k8s.io/kwok"),
        Program("network-policies", "network-policies", ".", "sigs.k8s.io/kube-network-policies"),
        Program("pause", "pause", ".", ""),
    )
}

KUEUE = Program("kueue", "kueue", "sigs.k8s.io/kueue/cmd/kueue", "sigs.k8s.io/kueue")
"""Built by the one test that needs it, and not with the cluster's programs: it takes some three minutes."""

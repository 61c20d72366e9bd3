"""A machine that cannot run a cluster: all reasons are reported at once, with their own exit code."""

from pathlib import Path

import pytest
from testcluster import cgroups, commands, layout, packages, preflight, programs
from testcluster.layout import Layout
from testcluster.preflight import CannotRunError, Lack
from testcluster.shell import ClusterError


def test_a_user_other_than_root_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    assert [lack.what for lack in preflight.lacks(Layout(tmp_path))] == ["root"]


def test_another_operating_system_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "darwin")

    assert str(preflight.lacks(Layout(tmp_path))[0]) == "Linux: this is darwin"


def test_everything_missing_is_reported_and_the_exit_code_is_three(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDPIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(preflight, "lacks", lambda _: [Lack("network bridge", "no"), Lack("overlay mounts", "neither")])

    assert commands.main(["check"]) == commands.main(["up"]) == 3
    assert capsys.readouterr().err.startswith("This machine cannot run a cluster:\n  network bridge: no\n  overlay mounts: neither\n")


def test_a_full_disk_is_reported_with_the_space_that_is_needed() -> None:
    assert "7 GiB are free in /x; 36 are needed" in str(preflight.disk_for(7, "/x"))
    assert preflight.disk_for(36, "/x") is None


def test_a_machine_that_lacks_nothing_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "lacks", lambda _: [])

    preflight.require(Layout(tmp_path))
    assert issubclass(CannotRunError, ClusterError)


def test_missing_packages_are_those_whose_program_does_not_exist() -> None:
    assert preflight.missing_packages(lambda shown_by: shown_by not in ("ip", "/usr/lib/cni/ptp")) == [
        "containernetworking-plugins",
        "iproute2",
    ]


def test_without_apt_the_missing_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda program: program not in ("apt-get", "containerd"))

    with pytest.raises(ClusterError, match="Install containerd: this machine has no apt-get"):
        packages.install()


def test_without_apt_the_package_that_is_unpacked_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "is_there", lambda _: False)

    with pytest.raises(ClusterError, match="no apt-get to download prometheus with"):
        packages.unpack(Layout(tmp_path))


def test_programs_that_are_unpacked_are_not_downloaded_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "is_there", lambda _: False)
    for program in ("prometheus", "promtool"):
        packages.unpacked(Layout(tmp_path), program).parent.mkdir(exist_ok=True)
        packages.unpacked(Layout(tmp_path), program).touch()

    packages.unpack(Layout(tmp_path))


ONE = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw 0 0\n"
TWO = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"


def test_control_groups_of_both_versions_are_found() -> None:
    assert cgroups.hierarchies(TWO) == {"unified": Path("/sys/fs/cgroup")}
    assert list(cgroups.hierarchies(ONE + TWO)) == ["memory", "cpu,cpuacct", "unified"]
    assert cgroups.hierarchies("tmpfs /tmp tmpfs rw 0 0\n") == {}


def test_missing_controllers_are_reported() -> None:
    assert cgroups.missing_controllers(ONE) == ["cpuset", "pids"]


def test_the_layout_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDPIPE_CACHE", str(tmp_path))

    here = layout.default_layout()

    assert here.cache == tmp_path / "cluster"
    assert programs.binary(here, "kubectl").name.startswith("kubectl-v1.")


@pytest.mark.parametrize(("text", "version"), [("go1.26.8\n", (1, 26)), ("go1.27rc1", (1, 27)), ("devel +abc", (99, 0))])
def test_the_version_of_go_is_read(text: str, version: tuple[int, int]) -> None:
    assert programs.go_version(text) == version

"""The measurement from `git clone` to the first dashboard: what it reads and what it prints."""

from pathlib import Path

import first_dashboard
import pytest
from first_dashboard import Phase


def test_the_table_has_the_seconds_of_each_phase_and_since_the_beginning() -> None:
    assert first_dashboard.table([Phase("git clone", 2.4), Phase("cluster", 11.2)]).splitlines()[2:] == [
        "| git clone | 2 | 2 |",
        "| cluster | 11 | 14 |",
    ]


def test_it_says_whether_the_programs_of_the_cluster_had_to_be_built() -> None:
    built = "built etcd-v3.6.4 in 61 s\nbuilt kwok-v0.7 in 30 s\nthe cluster runs\n"

    assert first_dashboard.cached_programs(built) == "2 programs were built, in 91 s"
    assert first_dashboard.cached_programs("the cluster runs\n") == "all programs were cached"


def test_it_has_the_variables_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")

    assert first_dashboard.environment_of('export KUBECONFIG="/a/b c"\nexport PATH="/cluster/bin:$PATH"\n') == {
        "KUBECONFIG": "/a/b c",
        "PATH": "/cluster/bin:/usr/bin",
    }


def test_a_command_that_fails_ends_the_measurement_with_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="sh -c echo so; exit 3 failed:\nso"):
        first_dashboard.run("sh", "-c", "echo so; exit 3", folder=tmp_path)

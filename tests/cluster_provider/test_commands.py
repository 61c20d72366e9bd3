"""The command line, and whose cluster may be broken on purpose."""

from pathlib import Path

import pytest
from testcluster import commands, outages
from testcluster.layout import NODES, Layout

HERE = Layout(Path("/somewhere/cluster"))


@pytest.mark.parametrize("name", [*commands.COMMANDS, *commands.ON_A_NODE])
def test_every_command_is_understood(name: str) -> None:
    words = [name, NODES[0].name] if name in commands.ON_A_NODE else [name]

    assert commands.parser().parse_args(words).command == name


def test_an_unknown_node_is_refused() -> None:
    with pytest.raises(SystemExit):
        commands.parser().parse_args(["kill-node", "node-nine"])


def test_a_shell_is_told_all_that_the_tests_need() -> None:
    told = commands.environment(HERE)

    assert told["KUBECONFIG"] == "/somewhere/cluster/run/kubeconfig"
    assert {"FEDPIPE_OPERATOR_IMAGE", "FEDPIPE_TRAINER_IMAGE", "FEDPIPE_STORE_ENDPOINT", "PATH"} <= set(told)


@pytest.mark.parametrize(
    ("kubeconfig", "ours"),
    [("/somewhere/cluster/run/kubeconfig", True), ("/somewhere/cluster/run/../run/kubeconfig", True), ("/else", False), ("", False)],
)
def test_only_our_own_cluster_is_broken_on_purpose(kubeconfig: str, ours: bool) -> None:
    assert outages.are_possible(HERE, kubeconfig) is ours

"""The command line, and the check for a cluster in which tests may cause outages."""

from pathlib import Path

import pytest
from testcluster import commands, outages
from testcluster.layout import NODES, Layout

HERE = Layout(Path("/somewhere/cluster"))


@pytest.mark.parametrize("name", [*commands.COMMANDS, *commands.ON_A_NODE])
def test_every_command_is_parsed(name: str) -> None:
    arguments = [name, NODES[0].name] if name in commands.ON_A_NODE else [name]

    assert commands.parser().parse_args(arguments).command == name


def test_an_unknown_node_is_rejected() -> None:
    with pytest.raises(SystemExit):
        commands.parser().parse_args(["kill-node", "node-nine"])


def test_the_environment_has_every_variable_that_the_tests_need() -> None:
    environment = commands.environment(HERE)

    assert environment["KUBECONFIG"] == "/somewhere/cluster/run/kubeconfig"
    assert {"FEDPIPE_OPERATOR_IMAGE", "FEDPIPE_TRAINER_IMAGE", "FEDPIPE_STORE_ENDPOINT", "PATH"} <= set(environment)


@pytest.mark.parametrize(
    ("kubeconfig", "ours"),
    [("/somewhere/cluster/run/kubeconfig", True), ("/somewhere/cluster/run/../run/kubeconfig", True), ("/else", False), ("", False)],
)
def test_outages_are_possible_only_in_our_own_cluster(kubeconfig: str, ours: bool) -> None:
    assert outages.are_possible(HERE, kubeconfig) is ours

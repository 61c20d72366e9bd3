"""The command line, `fedpipe`: one module for each command, imported only when the command is used.

Each module of `COMMANDS` has a function `command`: its docstring is the help, its annotations are the arguments.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import typer

COMMANDS: Final = {
    "init": "fedpipe_operator.cli.init",
    "validate": "fedpipe_operator.cli.validate",
    "plan": "fedpipe_operator.cli.plan",
    "run": "fedpipe_operator.cli.run",
    "report": "fedpipe_operator.cli.report",
    "status": "fedpipe_operator.cli.status",
    "events": "fedpipe_operator.cli.events",
    "logs": "fedpipe_operator.cli.logs",
}


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """The application with the command that `arguments` begin with, or with all commands (for the help, or a mistyped command)."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_fedpipe)
    selected = [name for name in COMMANDS if name in arguments[:1]] or list(COMMANDS)
    for name in selected:
        app.command(name)(import_module(COMMANDS[name]).command)
    return app


def main() -> None:
    """Run the command that the arguments of the process name."""
    app_for(sys.argv[1:])()


def _fedpipe() -> None:
    """Federated fine-tuning of language models, planned for each site and aggregated exactly."""

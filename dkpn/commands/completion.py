"""``dkpn --print-completion SHELL``: what makes a shell complete the command line, by shtab."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dkpn.packages import require

SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("photos", "weights")  # arguments that are files or folders, though not of the type Path


class PrintCompletion(argparse.Action):
    """Print the script for a shell and end."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """See `argparse.Action`."""
        shtab = require("shtab")
        for action in _actions(parser):
            if action.type is Path or action.dest in _FILES:
                action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
        print(shtab.complete(parser, values))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)

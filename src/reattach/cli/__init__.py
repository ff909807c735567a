"""The command line: ``reattach serve``, ``keys``, ``doctor`` and the other commands.

The modules of the commands import in their functions what only one command needs, because imports
take most of the time of a short command.
"""

import sys
from typing import Final

from reattach.cli.printable import fail, sentence_of
from reattach.domain.errors import ReattachError

_INTERRUPTED: Final = 130
"""The status of a program that SIGINT ended, as of Typer's commands."""


def main() -> None:
    """Run the command line; errors of Reattach end it with one line and status 1."""
    try:
        _run(sys.argv[1:])
    except ReattachError as error:
        fail(sentence_of(error))


def _run(words: list[str]) -> None:
    if words[:1] == ["serve"]:
        from reattach.cli.plain_serve import plain_options, run_server

        options = plain_options(words[1:])
        if options is not None:
            try:
                sys.exit(run_server(options))
            except KeyboardInterrupt:
                sys.exit(_INTERRUPTED)
    from reattach.cli.commands import app

    app(prog_name="reattach")

"""`meshctl`: the operator's command."""

from __future__ import annotations

from meshctl import interrupts

# isort: split
import argparse
import sys
from typing import Final

from contracts import VERSION
from contracts.build import BUILD
from contracts.errors import TaskmeshError
from mesh.errors import SettingsError
from meshctl.commands import (
    config,
    dead_letters,
    demo,
    doctor,
    example,
    keys,
    permissions,
    pools,
    processes,
    reload,
    repair,
    replies,
    rotate,
    storage,
    streams,
    tasks,
    tools,
    transfer,
    triggers,
    up,
    usage,
    valves,
    why,
    workers,
)
from meshctl.display import output
from meshctl.errors import ApiError
from meshctl.flags import add_setting_flags
from meshctl.interrupts import STATUS_INTERRUPTED

STATUS_FAILED: Final = 1
STATUS_USAGE: Final = 2
STATUS_BROKEN_PIPE: Final = 141
"""As a shell shows a program that SIGPIPE ended."""

_DESCRIPTION = "Run a task mesh, submit tasks to one, and watch them."
_EPILOG = """\
On a terminal the output is text, into a pipe it is JSON lines. An error is one line on standard error.
status: 0 it worked, 1 it did not, 2 the command line or a setting was wrong, 3 streams differ,
        130 interrupted

Begin with: meshctl up --first-task
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="meshctl",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"meshctl {VERSION} (build {BUILD})")
    tasks.add_address_options(parser)
    common = argparse.ArgumentParser(add_help=False)
    tasks.add_address_options(common)
    add_setting_flags(common, ("home",))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    up.add_commands(commands)
    demo.add_commands(commands)
    tasks.add_commands(commands, common)
    why.add_commands(commands, common)
    valves.add_commands(commands, common)
    replies.add_commands(commands, common)
    tools.add_commands(commands, common)
    dead_letters.add_commands(commands, common)
    repair.add_commands(commands)
    streams.add_commands(commands)
    permissions.add_commands(commands)
    storage.add_commands(commands)
    usage.add_commands(commands)
    workers.add_commands(commands)
    pools.add_commands(commands, common)
    processes.add_commands(commands)
    rotate.add_commands(commands)
    transfer.add_commands(commands)
    triggers.add_commands(commands)
    keys.add_commands(commands)
    doctor.add_commands(commands)
    config.add_commands(commands)
    reload.add_commands(commands)
    example.add_commands(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status. Usage errors exit with 2 by themselves."""
    interrupts.begun()
    try:
        output.prepare()
        parsed = build_parser().parse_args(arguments)
        status: int = parsed.run(parsed)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        output.give_up()
        return STATUS_BROKEN_PIPE
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # The prompt gets a line of its own.
        return STATUS_INTERRUPTED
    except SettingsError as error:
        print(f"meshctl: {_line(error)}", file=sys.stderr)
        return STATUS_USAGE
    except TaskmeshError as error:
        print(f"meshctl: {_line(error)}", file=sys.stderr)
        return STATUS_FAILED


def _line(error: TaskmeshError) -> str:
    """An error's code, where it says something, and its text."""
    text = " ".join(output.printable(str(error)).split())
    unspecific = not isinstance(error, ApiError) and error.code == TaskmeshError.code
    return text if unspecific else f"{error.code}: {text}"


if __name__ == "__main__":
    sys.exit(main())

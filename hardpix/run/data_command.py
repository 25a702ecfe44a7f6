"""``hardpix data``: the commands that look at data sets and bring them into shape, one module each."""

from __future__ import annotations

from hardpix.arguments import Parser
from hardpix.run import check_command, hn_command, pack_command, prepare_command, show_command, stitch_command

# Each module has add_parser(commands) and run(given) -> exit status, and imports torch in run alone.
COMMANDS = {
    "prepare": prepare_command,
    "check": check_command,
    "show": show_command,
    "pack": pack_command,
    "stitch": stitch_command,
    "hn-labels": hn_command,
}


def main(arguments: list[str]) -> int:
    parser = Parser("hardpix data", description="Prepare, look at and pack data sets.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in COMMANDS.values():
        module.add_parser(commands)
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0] not in COMMANDS:
        parser.parse_args(arguments)  # prints the help, or which commands there are
        return 2
    # Overrides may stand between the options, which a parser of sub-commands does not allow.
    given = commands.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    return COMMANDS[arguments[0]].run(given)

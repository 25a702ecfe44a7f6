"""``hardpix data``: the commands that look at data sets and bring them into shape."""

from __future__ import annotations

from hardpix.arguments import Parser
from hardpix.run import check_command, hn_command, pack_command, prepare_command, show_command, stitch_command

# Adds its parser to the commands; runs it and returns the exit status. Only the latter imports torch.
COMMANDS = {
    "prepare": (prepare_command.add_parser, prepare_command.run),
    "check": (check_command.add_parser, check_command.run),
    "show": (show_command.add_parser, show_command.run),
    "pack": (pack_command.add_parser, pack_command.run),
    "stitch": (stitch_command.add_parser, stitch_command.run),
    "hn-labels": (hn_command.add_parser, hn_command.run),
}


def main(arguments: list[str]) -> int:
    parser = Parser("hardpix data", description="Prepare, look at and pack data sets.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add_parser, _ in COMMANDS.values():
        add_parser(commands)
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0] not in COMMANDS:
        parser.parse_args(arguments)  # prints the help, or which commands there are
        return 2
    # Overrides may stand between the options, which a parser of sub-commands does not allow.
    given = commands.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    return COMMANDS[arguments[0]][1](given)

"""Tries one case against a server from outside, over raw sockets. What is not as
it should be ends it with a line that says what was seen.

usage: drive.py CASE NAME=VALUE…    ADDRESS and PID of the server, and what else
                                    the case needs
       drive.py --list
"""

import sys

import calls
import floods
import handshakes
import streams
from server import CASES, Server
from wire import Closed, Surprise

__all__ = ["calls", "floods", "handshakes", "streams"]


def main(arguments):
    if arguments == ["--list"]:
        print(*CASES, sep="\n")
        return
    case, *values = arguments
    try:
        CASES[case](Server(**dict(value.split("=", 1) for value in values)))
    except (Closed, Surprise) as seen:
        sys.exit(f"{case}: {type(seen).__name__}: {seen}")


main(sys.argv[1:])

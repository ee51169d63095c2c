"""The start of the command line: of `sslpipe`, and of `python -m sslpipe`, as torchrun wants it."""

import signal
import sys


def main() -> None:
    """Import the commands, which takes up to a second, and run the one that was typed.

    A Ctrl-C on the way, or behind the command, ends with 130, as shells count it, and leaves no
    trace.
    """
    try:
        from .cli import commands
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        commands.main()
    finally:  # what torch tidies up at the end would print a trace where it is interrupted
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()

"""The start of the command line: of `sslpipe`, and of `python -m sslpipe`, as torchrun wants it."""

import sys


def main() -> None:
    """Import the commands, which takes up to a second, and run the one that was typed.

    A Ctrl-C on the way ends with 130, as shells count it, and leaves no trace.
    """
    try:
        from .cli import commands
    except KeyboardInterrupt:
        sys.exit(130)
    commands.main()


if __name__ == "__main__":
    main()

"""View specs that tests build encoders for."""

from sslpipe.batch import ViewSpec


def square(side: int) -> ViewSpec:
    """One RGB view of `side` x `side` px."""
    return ViewSpec("global", 1, "CHW", (3, side, side))

"""Errors that a user can mend, as one line: ours, those of disks, and those of distant stores."""

from ..errors import SslpipeError

CLIENTS = ("aiohttp", "aiobotocore", "botocore", "fsspec", "s3fs")  # packages behind URLs


def one_line(error: Exception) -> str | None:
    """What went wrong, where, and what to do; None: a fault of the program."""
    if isinstance(error, SslpipeError):
        return f"{type(error).__name__}: {error}"
    if type(error).__module__.partition(".")[0] in CLIENTS:
        words = " ".join(str(error).split()) or type(error).__name__
        return f"a store does not answer as it should ({words}); check URL, keys and network"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path, its rights and free space"
    if isinstance(error, OSError) and error.errno:
        return f"{error.strerror}; check the rights and the free space of the outputs"
    return None

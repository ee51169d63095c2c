"""Errors that a user can mend, as one line: ours, those of disks, and those of distant stores."""

from ..errors import SslpipeError
from ..shards.side_files import disk_fault

CLIENTS = ("aiohttp", "aiobotocore", "botocore", "fsspec", "s3fs")  # packages behind URLs


def is_memory(error: Exception) -> bool:
    """Whether memory is short: Python's word for it, or those of torch, which has two."""
    kind, words = type(error).__name__, str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (kind == "OutOfMemoryError" or "can't allocate memory" in words)
    )


def one_line(error: Exception) -> str | None:
    """What went wrong, where, and what to do; None: a fault of the program."""
    if isinstance(error, SslpipeError):
        return f"{type(error).__name__}: {error}"
    if type(error).__module__.partition(".")[0] in CLIENTS:
        words = " ".join(str(error).split()) or type(error).__name__
        return f"a store does not answer as it should ({words}); check URL, keys and network"
    if is_memory(error):
        words = " ".join(str(error).partition(". ")[0].split()) or "none is left"
        return f"memory: {words}; make batches, views or the model smaller"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path, its rights and free space"
    fault = error if isinstance(error, OSError) and error.errno else disk_fault(error)
    if fault is not None:
        return f"{fault.strerror}; check the rights and the free space of the outputs"
    return None

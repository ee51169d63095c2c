"""Where URLs lead: the file systems of fsspec, with the options that our reading wants."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import ExtraError, ShardError, SslpipeError

TIMEOUT = 60.0  # seconds without a byte after which a request counts as failed
EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3"}  # protocol -> ours


def find_store(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL (made once per process and options), and the path in it.

    Raises:
        ExtraError: the client of this store is not installed.
        ShardError: no such kind of store.
    """
    import fsspec  # here: it takes 0.1 s, which local files need not pay

    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url, **options(protocol))  # type: ignore[no-any-return]
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        what = f'pip install "sslpipe[{extra}]"' if extra else "install it"
        raise ExtraError(
            f"{url}: {protocol}:// needs a package that is not installed ({error}); {what}"
        ) from error
    except ValueError as error:
        raise ShardError(f"{url}: {error}; use a path or a URL that fsspec knows") from error


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Turn whatever a client raises into one line that names the URL.

    Raises:
        ShardError: it cannot be asked.
        ExtraError: its client is not installed.
    """
    try:
        yield
    except SslpipeError:
        raise
    except Exception as error:  # each client raises its own kinds
        words = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):  # fsspec's hold the path only
            words = "there is nothing"
        raise ShardError(f"{url}: cannot be read ({words}); check URL, keys and network") from error


def options(protocol: str) -> dict[str, Any]:
    """Options of a file system that its users cannot set by environment variables."""
    if protocol in {"s3", "s3a"}:
        # s3fs asks for the size before each file, to fetch it in parts, unless it may fetch but one
        return {"max_concurrency": 1}
    if protocol not in {"http", "https"}:
        return {}
    import aiohttp

    # aiohttp's own limit is five minutes for the whole answer, however fast it flows
    silence = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    return {"client_kwargs": {"timeout": silence}}

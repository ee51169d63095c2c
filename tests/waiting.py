"""Catches on a GPU what would wait for it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forbidden_to_wait() -> Iterator[None]:
    """Whatever waits for the device raises within; afterwards it may, whatever happened."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the debug mode announces itself as a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

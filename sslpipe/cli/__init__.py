"""The command line: one function call per command, no logic."""

from .commands import app, main

__all__ = ["app", "main"]

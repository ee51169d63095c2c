"""What a saved place in the stream must agree with before it is taken up."""

from typing import Any

from ..errors import StateError


def check_state(state: dict[str, Any], mine: dict[str, Any]) -> None:
    """A state can be resumed if all but its step is what this pipeline's is.

    Raises:
        StateError: what differs, and how to go on.
    """
    parts = {
        "version": "format",
        "manifest": "shards or their weights",
        "order": "order (kind, lanes, window, remainder)",
        "recipe": "recipe",
    }
    for name, what in parts.items():
        if state.get(name) != mine[name]:
            raise StateError(
                f"stream state: its {what} was {state.get(name)!r}, this pipeline's is "
                f"{mine[name]!r}; go on with what it was, or start a new run from the weights alone"
            )

"""What settings of a method may be. They are checked when it is built, and all in the same words.

A ValueError here becomes a RecipeError that says where the setting stands.
"""

from collections.abc import Sequence


def positive(**settings: float | Sequence[float]) -> None:
    """Check what must be above 0; of several numbers, such as layers, there is one or more.

    Raises:
        ValueError: a setting is not.
    """
    for name, value in settings.items():
        parts = value if isinstance(value, Sequence) else [value]
        if not parts or not all(part > 0 for part in parts):
            raise ValueError(f"{name} = {value}; set what is above 0")


def not_negative(**settings: float) -> None:
    """Check weights, and what 0 turns off.

    Raises:
        ValueError: a setting is below 0.
    """
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{name} = {value}; set 0 or more")


def shares(**settings: float | Sequence[float]) -> None:
    """Check momenta, and shares of a run or a sum.

    Raises:
        ValueError: a setting, or one of its numbers, is outside [0, 1].
    """
    for name, value in settings.items():
        parts = value if isinstance(value, Sequence) else [value]
        if not all(0 <= part <= 1 for part in parts):
            raise ValueError(f"{name} = {value}; set it in [0, 1]")

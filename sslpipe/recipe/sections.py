"""What all sections of a recipe are, the types of their keys, and the way back to YAML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import pydantic
import yaml

from .lines import KeyPath, Places
from .names import MOST, Entry


def parse_entry(value: Any, info: pydantic.ValidationInfo) -> Entry:
    """Make an Entry of `name` or `{name: {...}}`; its place is filled in by `located`."""
    if isinstance(value, Entry):
        return value
    if isinstance(value, str) and value:
        return Entry(value)
    if isinstance(value, dict) and len(value) == 1:
        ((name, settings),) = value.items()
        if isinstance(name, str) and name and (settings is None or isinstance(settings, dict)):
            return Entry(name, settings or {})
    raise ValueError("write a name, or one name with its settings: {name: {setting: value}}")


Positive = Annotated[int, pydantic.Field(gt=0, le=MOST)]
Count = Annotated[int, pydantic.Field(gt=0, le=1000)]  # of views, or masks, of a sample
Fraction = Annotated[float, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Text = Annotated[str, pydantic.Field(min_length=1)]  # an empty one is a variable that is not set
Info = pydantic.ValidationInfo
Always = pydantic.Field(validate_default=True)
Named = Annotated[Entry, pydantic.BeforeValidator(parse_entry)]
Weight = Annotated[float, pydantic.Field(gt=0)]


class Section(pydantic.BaseModel):
    """The base of all sections: they are frozen, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a section stands in a file; all are equal, as sections are compared without it."""

    path: str = field(default="<recipe>", compare=False)
    place: KeyPath = field(default=(), compare=False)
    places: Places = field(default_factory=Places, compare=False)


class PlacedSection(Section):
    """A section inside a recipe that knows where its own keys are written down."""

    _standing: Standing = pydantic.PrivateAttr(default_factory=Standing)

    def where(self, key: str) -> str:
        """Name the place of a setting, for messages, as `Recipe.where` does."""
        standing = self._standing
        return standing.places.where(standing.path, (*standing.place, key))


class WrittenSection(Section):
    """A section that knows where it and what is in it are written down.

    The places are under no fingerprint, and nothing that `==` compares.
    """

    path: str = pydantic.Field(exclude=True, default="<recipe>")
    _places: Places = pydantic.PrivateAttr(default_factory=Places)

    def model_post_init(self, context: Any, /) -> None:
        """Keep the places, which a parser gives as the context of the validation."""
        if isinstance(context, Places):
            self._places = context
            self._tell_inner(context)

    def _tell_inner(self, places: Places) -> None:
        """Tell sections that are named inside one of this section's where they stand."""
        for kind in type(self).model_fields:
            groups = getattr(self, kind)
            for name, inner in groups.items() if isinstance(groups, dict) else ():
                if isinstance(inner, PlacedSection):
                    inner._standing = Standing(self.path, (kind, name), places)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy as pydantic does; what is other than it was written stands in no file."""
        copy = super().model_copy(update=update, deep=deep)
        other = {name for name, new in (update or {}).items() if new != getattr(self, name)}
        copy._places = self._places.without(other)
        return copy

    def where(self, *keys: str | int) -> str:
        """Name the place of a setting, for messages: `where("stream", "lanes")` -> "r.yaml:2".

        What `--set` gave is told as that. A default has the place of the section that it is of,
        and what stands in no file the path alone.
        """
        return self._places.where(self.path, keys)


def recipe_text(recipe: Section) -> str:
    """Write a recipe as YAML, without comments, that parses back to the same fingerprint."""
    return yaml.safe_dump(yaml_data(recipe), sort_keys=False)


def yaml_data(value: Any) -> Any:
    """Turn sections, entries and containers back into the data that YAML gave."""
    if isinstance(value, Entry):
        return {value.name: yaml_data(value.settings)}
    if isinstance(value, Section):
        names = [name for name in type(value).model_fields if name != "path"]
        return {n: yaml_data(getattr(value, n)) for n in names if getattr(value, n) is not None}
    if isinstance(value, Mapping):
        return {key: yaml_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [yaml_data(item) for item in value]
    return value

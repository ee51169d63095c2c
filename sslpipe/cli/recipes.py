"""`sslpipe recipes`: what recipes there are, by what their files say."""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from .terminal import console

if TYPE_CHECKING:  # the schema takes a quarter of a second of each command's start
    from ..recipe import Recipe

MEASURED = re.compile(r"^# measured: (.+)$", re.MULTILINE)  # a line in the head of a recipe
NUMBER = re.compile(r"(.+?) (\d\.\d+) \(untrained (\d\.\d+)\)")
SHOWN = ("k-NN", "linear")  # in the table; the files and --json have all numbers


@dataclass(frozen=True, slots=True)
class Listed:
    """Holds what the list says of one recipe.

    `measured`: what its head states -> (share in [0, 1], the same of the untrained encoder); empty:
    it was not run yet, or its head states nothing in this form.
    """

    name: str
    path: str
    views: dict[str, tuple[int, tuple[int, ...]]]  # group -> count and shape of its views
    masks: tuple[str, ...]
    targets: tuple[str, ...]
    method: str
    backbone: str
    epochs: int
    measured: dict[str, tuple[float, float]]


def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, with paths.")] = False,
) -> None:
    """List the recipes that ship with the package: views, method, backbone, what was measured.

    Each number stands before that of the untrained encoder; how it was measured stands in the head
    of the file, whose path `--json` has.

    Example: `sslpipe recipes`
    """
    from ..recipe import recipes

    found = [listed(name, path) for name, path in recipes().items()]
    if as_json:
        console.print_json(json.dumps([asdict(row) for row in found]))
        return
    table = Table("recipe", "views", "method", "backbone", *SHOWN, box=box.SIMPLE_HEAD)
    for number in (0, -2, -1):  # narrow screens wrap the others
        table.columns[number].no_wrap = True
    for row in found:
        views = " + ".join(f"{count} x {side(shape)}" for count, shape in row.views.values())
        numbers = [row.measured.get(name) for name in SHOWN]
        shown = [f"{pair[0]:.2f} ({pair[1]:.2f})" if pair else "" for pair in numbers]
        table.add_row(row.name, views, row.method, row.backbone, *shown)
    console.print(table)
    console.print(
        "k-NN, linear: trained (untrained), on little data; how stands in each file's head"
    )


def side(shape: tuple[int, ...]) -> str:
    """`224` for square pictures; all lengths but the channels for others."""
    lengths = shape[1:] or shape
    return str(lengths[0]) if len({*lengths}) == 1 else " x ".join(map(str, lengths))


def listed(name: str, path: Path) -> Listed:
    """What a recipe's file says of it.

    Raises:
        RecipeError: it is not valid.
    """
    from ..recipe import load_recipe

    recipe = load_recipe(path)
    assert recipe.method is not None
    assert recipe.train is not None  # as all that ship have
    return Listed(
        name=name,
        path=str(path),
        views=views_of(recipe),
        masks=tuple(recipe.masks),
        targets=tuple(recipe.targets),
        method=recipe.method.name,
        backbone=recipe.train.backbone.name,
        epochs=recipe.train.epochs,
        measured=measured(path.read_text(encoding="utf-8")),
    )


def views_of(recipe: "Recipe") -> dict[str, tuple[int, tuple[int, ...]]]:
    """Count and shape of the views as batches hold them, pretext tasks applied."""
    from ..modalities.finding import modality_of
    from ..modalities.parts import groups_of

    recipe = without_labels(with_any_vocabulary(recipe))
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    for groups in groups_of(recipe).values():
        decider = modality_of(recipe, groups[0]).decider(recipe, groups)
        found |= {group: (spec.count, tuple(spec.shape)) for group, spec in decider.views.items()}
    return found


def with_any_vocabulary(recipe: "Recipe") -> "Recipe":
    """The same with bytes for vocabularies that nobody has trained here: rows are as long."""
    from ..modalities.text.vocabulary import VOCABULARIES

    views = dict(recipe.views)
    for name, view in views.items():
        ops = [
            replace(op, settings={**op.settings, "vocabulary": "bytes_t5"})
            if op.settings.get("vocabulary", "bytes") not in VOCABULARIES
            else op
            for op in view.ops
        ]
        views[name] = view.model_copy(update={"ops": tuple(ops)})
    return recipe.model_copy(update={"views": views})


def without_labels(recipe: "Recipe") -> "Recipe":
    """The same without labels of frames, whose file nobody has made here: they change no view."""
    targets = {n: each for n, each in recipe.targets.items() if each.task.name != "frame_labels"}
    return recipe.model_copy(update={"targets": targets})


def measured(text: str) -> dict[str, tuple[float, float]]:
    """The numbers of the line `# measured: NAME VALUE (untrained VALUE), ...; ...`; empty: none."""
    line = MEASURED.search(text)
    parts = re.split("[,;] ", line[1]) if line else []
    found = (NUMBER.fullmatch(part) for part in parts)
    return {match[1]: (float(match[2]), float(match[3])) for match in found if match}

"""The command line. No logic: each command calls one function and shows what it returns."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from . import shards, tars, tokenizer
from .faults import one_line
from .paths import finite, in_a_folder, picture, run_folder
from .terminal import console, notes

app = typer.Typer(
    name="sslpipe",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Pack image folders into shards, look at what a recipe makes of them, pretrain, evaluate.",
)
app.command()(shards.pack)
app.command()(shards.verify)
app.command()(tars.index)
app.command()(tars.inspect)
app.add_typer(tokenizer.app, name="tokenizer")


RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")]
Shards = Annotated[
    list[str],
    typer.Option(help="A packed folder or its manifest.json; several to mix: NAME=PATH, repeated."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting of the recipe: stream.batch_size=64"),
]
LAST = 2**31 - 1  # of the batches that can be named
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")]


def main() -> None:
    """Run a command; a user's mistake, and what disks and stores refuse, is one line and code 2."""
    try:
        app()
    except Exception as error:
        words = one_line(error)
        if words is None:
            raise  # ours: a trace is what we need
        notes.print("[red]error:[/red] ", end="")
        notes.print(words, markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


@app.command()
def show(
    recipe: RecipeArgument,
    shards: Shards,
    out: Annotated[Path, typer.Option(help="The picture to write.", callback=picture)] = Path(
        "show.png"
    ),
    rows: Annotated[int, typer.Option(help="Samples to show.", min=1)] = 8,
    step: Annotated[int, typer.Option(help="Which batch of the run.", min=0, max=LAST)] = 0,
    sets: Sets = None,
) -> None:
    """Draw a contact sheet of one batch: rows are samples, columns are views.

    Example: `sslpipe show dino --shards shards/sample --out dino.png`
    """
    from ..modalities.parts import draw_sheet
    from ..pipeline import load
    from ..recipe import find_recipe, load_recipe
    from ..stream.open import parse_shards
    from ..train.run import check_names

    overrides = [*(sets or []), f"stream.batch_size={rows}", "stream.allow_repeats=true"]
    chosen = load_recipe(find_recipe(recipe), overrides=overrides)
    check_names(chosen)
    with load(chosen, shards=parse_shards(shards), device="cpu", rank=0, world_size=1) as pipe:
        batch = pipe.make_batch(pipe.load_share(step), step)
        draw_sheet(pipe.parts, batch, pipe.spec, rows=rows).save(out)
        for part in pipe.parts:
            for group, summary in part.decider.summaries.items():
                text = f"{group}: {summary}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"wrote {out}")


@app.command()
def bench(
    recipe: RecipeArgument,
    shards: Shards,
    seconds: Annotated[float, typer.Option(help="Per stage.", min=0.01, callback=finite)] = 5.0,
    data_only: Annotated[bool, typer.Option(help="Leave the method out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    device: Device = None,
    sets: Sets = None,
) -> None:
    """Measure images/s of each stage and of all together, name the bottleneck and what to change.

    Example: `sslpipe bench demo --shards shards/sample`
    """
    from dataclasses import asdict

    from ..bench import measure
    from ..diagnosis import RATES
    from ..recipe import find_recipe, load_recipe
    from ..stream.open import parse_shards

    stages = measure(
        load_recipe(find_recipe(recipe), overrides=sets or []),
        shards=parse_shards(shards),
        device=device,
        seconds=seconds,
        with_method=not data_only,
        say=lambda text: notes.print(text, highlight=False, soft_wrap=True),
    )
    if as_json:
        row = {**asdict(stages), **dict.fromkeys(RATES), **stages.rates}
        told = {"bottleneck": stages.bottleneck, "verdict": stages.verdict}
        console.print_json(json.dumps({**row, **told}))
        return
    table = Table("stage", "images/s")
    for name, value in stages.rates.items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}")
    console.print(table)
    console.print(f"CPU time of the main process for data: {stages.cpu_us:,.0f} us per image")
    console.print(stages.verdict, markup=False)


@app.command()
def train(
    recipe: RecipeArgument,
    shards: Shards,
    out: Annotated[
        Path | None, typer.Option(help="Default: runs/RECIPE.", callback=run_folder)
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    max_steps: Annotated[
        int | None, typer.Option(help="Stop there; can be resumed.", min=1)
    ] = None,
    device: Device = None,
    sets: Sets = None,
) -> None:
    """Pretrain with the reference trainer: checkpoints, metrics.jsonl and TensorBoard in OUT.

    Ctrl-C and SIGTERM save and exit with 130 and 143, so that what follows after && does not start.

    Several GPUs: `torchrun --nproc-per-node 8 -m sslpipe train simclr --shards S --out runs/a`

    Example: `sslpipe train simclr_cifar --shards cifar --out runs/cifar --set train.epochs=100`
    """
    from ..recipe import find_recipe, load_recipe
    from ..stream.open import parse_shards
    from ..train.loop import train_recipe

    path = find_recipe(recipe)
    chosen = load_recipe(path, overrides=sets or [])
    result = train_recipe(
        chosen,
        shards=parse_shards(shards),
        out=out or Path("runs") / path.stem,
        resume=resume,
        max_steps=max_steps,
        device=device,
    )
    if result.stopped_by:
        raise typer.Exit(128 + result.stopped_by)  # as shells count an end by a signal


@app.command(name="eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="last.pt of a run.")],
    shards: Annotated[Path, typer.Argument(help="Labelled shards: the bank of the k-NN.")],
    test: Annotated[Path | None, typer.Option(help="Shards to test on; default: left out.")] = None,
    untrained: Annotated[
        bool, typer.Option(help="Also evaluate the same encoder untrained.")
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse sets whose classes are not the same.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    device: Device = None,
) -> None:
    """Weighted k-NN and a linear probe on frozen features, beside the untrained encoder.

    Without `--test`: leave-one-out k-NN and a cross-validated probe. With it, classes are matched
    by name, and what only one of the two sets has is said.

    Example: `sslpipe eval runs/cifar/last.pt cifar/train --test cifar/test`
    """
    from ..evaluate.command import compare

    reports = compare(
        checkpoint, shards=shards, test=test, untrained=untrained, device=device, strict=strict
    )
    first = next(iter(reports.values()))
    if first.note:
        notes.print(f"classes: {first.note}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        rows = {
            name: {row.name: row.value for row in report.rows} for name, report in reports.items()
        }
        console.print_json(json.dumps(rows))
        return
    table = Table("", *reports, "protocol")
    for index, row in enumerate(first.rows):
        values = [f"{report.rows[index].value:.3f}" for report in reports.values()]
        table.add_row(row.name, *values, row.protocol)
    console.print(first.protocol)
    console.print(table)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="last.pt of a run.")],
    out: Annotated[
        Path, typer.Argument(help="The state dict to write, e.g. encoder.pt.", callback=in_a_folder)
    ],
) -> None:
    """Write the encoder's weights under torchvision's or timm's own names.

    Example: `sslpipe export runs/cifar/last.pt encoder.pt`
    """
    import torch

    from ..train import load_encoder

    encoder, recipe = load_encoder(checkpoint)
    torch.save(encoder.get_submodule("model").state_dict(), out)
    assert recipe.train is not None
    console.print(f"wrote {out}: the weights of {recipe.train.backbone.name}, without a classifier")

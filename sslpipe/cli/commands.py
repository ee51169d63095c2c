"""The command line. No logic: each command calls one function and shows what it returns."""

import json
import platform
import signal
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from . import (
    evaluation,
    export,
    features,
    frame_labels,
    pseudo_label,
    recipes,
    shards,
    tars,
    tokenizer,
)
from .options import (
    AsJson,
    Device,
    LabelsFile,
    MaxSteps,
    MonitorSet,
    MonitorTest,
    RecipeArgument,
    Resume,
    RunFolder,
    Sets,
    Shards,
    WarmStart,
)  # fmt: skip
from .paths import (
    LARGE,
    MANY,
    at_most,
    check_current_folder,
    check_words,
    picture_file,
    save_picture,
    settings_of,
)
from .terminal import (
    STOPPED,
    Stopping,
    console,
    exit_code,
    interrupt,
    notes,
    one_line,
    say_made,
    terminate,
    write_any_sign,
)

app = typer.Typer(
    name="sslpipe",
    cls=Stopping,
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
app.command(name="pseudo-label")(pseudo_label.pseudo_label)
app.command()(features.features)
app.command(name="frame-labels")(frame_labels.frame_labels)
app.command(name="recipes")(recipes.list_recipes)
app.add_typer(tokenizer.app, name="tokenizer")


LAST = 2**31 - 1  # of the batches that can be named


def main() -> None:
    """Run a command; a user's mistake, and what disks and stores refuse, is one line and code 2."""
    write_any_sign()
    try:
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, terminate)
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
        check_words(sys.argv[1:])
        check_current_folder()
        app()
    except KeyboardInterrupt as error:  # before a command has begun
        notes.print(STOPPED)
        sys.exit(exit_code(error))
    except Exception as error:
        words = one_line(error)
        if words is None:
            raise  # ours: a trace is what we need
        with suppress(OSError):  # where stderr takes nothing, the exit code still tells
            notes.print("error: ", end="", style="red")
            notes.print(words, highlight=False, soft_wrap=True)
        sys.exit(2)


def show_version(wanted: bool) -> None:
    """Print the versions that a report of a fault needs, and end; torch is not imported for it."""
    if wanted:
        parts = [f"sslpipe {version('sslpipe')}", f"torch {version('torch')}"]
        console.print(", ".join([*parts, f"Python {platform.python_version()}"]), highlight=False)
        raise typer.Exit


@app.callback()
def sslpipe(
    versions: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Versions of sslpipe, torch and Python.",
            callback=show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def show(
    recipe: RecipeArgument,
    shards: Shards,
    out: Annotated[Path, typer.Option(help="The picture to write.", callback=picture_file)] = Path(
        "show.png"
    ),
    rows: Annotated[int, typer.Option(help="Samples to show.", min=1, callback=at_most(MANY))] = 8,
    step: Annotated[
        int, typer.Option(help="Which batch of the run.", min=0, callback=at_most(LAST))
    ] = 0,
    sets: Sets = None,
) -> None:
    """Draw one batch: each sample as it is stored, beside its views, masks and targets.

    The whole recipe is checked as `train` does it, method and optimizer too.

    Example: `sslpipe show dino --shards shards/sample --out dino.png`
    """
    from ..evaluate.during_training import check_protocols
    from ..modalities.sheets import draw_sheet, files_beside
    from ..pipeline import load
    from ..recipe import find_recipe, load_recipe
    from ..shards.side_files import replace_file
    from ..stream.open_source import parse_shards
    from ..stream.order import lanes_of
    from ..train.run import check_names, check_training

    path, given = find_recipe(recipe), settings_of(sets)
    whole = load_recipe(path, overrides=given)
    # lanes divide the recipe's batch, and need not divide the smaller one
    few = [f"stream.batch_size={rows}", "stream.allow_repeats=true", "stream.lanes=null"]
    lanes_of(whole.stream.lanes, whole.stream.batch_size, whole.where("stream", "lanes"))
    check_names(whole)
    check_protocols(whole)
    chosen = load_recipe(path, overrides=[*given, *few])
    with load(chosen, shards=parse_shards(shards), device="cpu", rank=0, world_size=1) as pipe:
        check_training(whole, pipe.spec)
        share = pipe.load_share(step)
        batch = pipe.make_batch(share, step)
        sheet = draw_sheet(pipe.parts, batch, pipe.spec, share.columns, rows=rows)
        save_picture(sheet, out)
        files = files_beside(pipe.parts, batch, pipe.spec, share.columns, rows=rows)
        for part in pipe.parts:
            for group, summary in part.decider.summaries.items():
                text = f"{group}: {summary}"
                console.print(text, highlight=False, soft_wrap=True)
    for end, data in files.items():
        replace_file(out.with_suffix(f".{end}"), data)
    written = [out, *(out.with_suffix(f".{end}") for end in files)]
    say_made(f"wrote {', '.join(map(str, written))}")


@app.command()
def bench(
    recipe: RecipeArgument,
    shards: Shards,
    seconds: Annotated[
        float, typer.Option(help="Per stage.", min=0.01, callback=at_most(LARGE))
    ] = 5.0,
    data_only: Annotated[bool, typer.Option("--data-only", help="Leave the method out.")] = False,
    as_json: AsJson = False,
    device: Device = None,
    sets: Sets = None,
) -> None:
    """Measure samples/s of each stage and of all together, name the bottleneck and what to change.

    Of packed text that is rows/s, and tokens/s beside it.

    Example: `sslpipe bench demo --shards shards/sample`
    """
    from dataclasses import asdict

    from ..bench import measure
    from ..diagnosis import RATES, rounded
    from ..recipe import find_recipe, load_recipe
    from ..stream.open_source import parse_shards

    with notes.status("opening") as status:
        stages = measure(
            load_recipe(find_recipe(recipe), overrides=settings_of(sets)),
            shards=parse_shards(shards),
            device=device,
            seconds=seconds,
            with_method=not data_only,
            say=lambda text: notes.print(text, highlight=False, soft_wrap=True),
            begin=lambda stage: status.update(f"measuring: {stage}"),
        )
    if as_json:
        row = {**asdict(stages), **dict.fromkeys(RATES), **stages.rates}
        told = {"bottleneck": stages.bottleneck, "verdict": stages.verdict}
        console.print_json(json.dumps({**row, **told}))
        return
    each = {f"{stages.unit}s/s": 1.0} | (
        {f"{stages.steps}/s": stages.steps_each} if stages.steps else {}
    )
    table = Table("stage", *each)
    for name, value in stages.rates.items():
        table.add_row(name.replace("_", " "), *(rounded(value * n) for n in each.values()))
    console.print(table)
    console.print(
        f"CPU time of the main process for data: {stages.cpu_us:,.0f} us per {stages.unit}"
    )
    console.print(stages.verdict)


@app.command()
def train(
    recipe: RecipeArgument,
    shards: Shards,
    out: RunFolder = None,
    resume: Resume = False,
    start: WarmStart = None,
    max_steps: MaxSteps = None,
    labels: LabelsFile = None,
    monitor: MonitorSet = None,
    monitor_test: MonitorTest = None,
    device: Device = None,
    sets: Sets = None,
) -> None:
    """Pretrain with the reference trainer: checkpoints, metrics.jsonl and TensorBoard in OUT.

    With `--monitor`, or `train.monitor` in the recipe, best.pt has the weights that it finds best.

    Ctrl-C and SIGTERM save and exit with 130 and 143, so that what follows after && does not start.

    Several GPUs: `torchrun --nproc-per-node 8 -m sslpipe train simclr --shards S --out runs/a`

    Example: `sslpipe train simclr_cifar --shards cifar --out runs/cifar --set train.epochs=100`
    """
    from ..evaluate.during_training import monitor_of
    from ..recipe import find_recipe, load_recipe
    from ..stream.open_source import parse_shards
    from ..train.loop import train_recipe

    path, data = find_recipe(recipe), parse_shards(shards)
    chosen = load_recipe(path, overrides=settings_of(sets, labels))
    result = train_recipe(
        chosen,
        shards=data,
        out=out or Path("runs") / path.stem,
        resume=resume,
        start=start,
        max_steps=max_steps,
        device=device,
        monitor=monitor_of(chosen, shards=data, monitor=monitor, test=monitor_test),
    )
    if result.stopped_by:
        raise typer.Exit(128 + result.stopped_by)  # as shells count an end by a signal


app.command(name="eval")(evaluation.eval_subject)
app.command()(export.export)  # behind the others in --help

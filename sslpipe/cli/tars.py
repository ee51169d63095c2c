"""Commands for tars that are already there: index and inspect. No logic, as in cli.py."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..errors import ShardError
from .paths import CROWD, MANY, at_most, here, in_a_folder, picture_file, run_folder, save_picture
from .terminal import AGAIN, ModalityOption, bar, console, say_line, say_made, stopped

KEPT = f"{AGAIN}: finished indexes are kept"
MOST = 20  # rows of a table of labels


Exports = Annotated[list[str] | None, typer.Option(help="Also for others: dali,wids,energon.")]
Extension = Annotated[str | None, typer.Option(help="Of the payload, where samples have several.")]
Rebuild = Annotated[bool, typer.Option("--rebuild", help="Also index again what is up to date.")]


def index(
    urls: Annotated[list[str], typer.Argument(help="Tars, folders, globs, {000..123}, URLs.")],
    out: Annotated[
        Path | None,
        typer.Option(help="For indexes and manifest; default: beside them.", callback=run_folder),
    ] = None,
    export: Exports = None,
    ext: Extension = None,
    label_key: Annotated[str, typer.Option(help="Of the label in .json members.")] = "label",
    decode: Annotated[bool, typer.Option("--decode", help="Decode all, not only headers.")] = False,
    rebuild: Rebuild = False,
    modality: ModalityOption = "image",
    name: Annotated[str | None, typer.Option(help="Of the set; default: the folder's.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Tars at once; default: a core each.", min=1, max=CROWD)
    ] = None,
) -> None:
    """Make existing WebDataset tars usable without rewriting them: an index for each, a manifest.

    The folder of a set that an older sslpipe made becomes one of this version, labels and all.
    Distant tars are streamed once. What is wrong or was left out is listed in `report.jsonl`, and
    the exit code is 1.

    Example: `sslpipe index "s3://bucket/laion/{00000..01023}.tar" --out shards/laion`
    """
    with stopped(KEPT):  # the imports take most of the first second
        from ..modalities.finding import find_modality
        from ..shards.make import exports
        from ..shards.make.adopt import adopt
        from ..shards.scan import Rules

    kinds = exports.check_kinds(",".join(export or ()))
    only = ext.lower().lstrip(".") if ext else None
    codec = find_modality(modality, "--modality").codec
    rules = Rules(codec, "decode" if decode else "header", label_key, only)
    with stopped(KEPT), bar("tars") as update:
        made = adopt(
            urls,
            rules=rules,
            out=out,
            name=name,
            rebuild=rebuild,
            threads=threads,
            progress=tar_progress(update),
        )
    for kind in kinds:
        say_made(f"{kind}: {exports.export(made.manifest, kind)}")
    show_adopted(made)


def show_adopted(made: Any) -> None:
    """What there is now, and what is wrong with it; exit code 1 if anything is."""
    manifest = made.manifest
    console.print(
        f"{manifest.samples:,} samples in {len(manifest.shards):,} tars: "
        f"{manifest.folder / 'manifest.json'}"
    )
    for problem in made.problems[:10]:
        say_line(f"{problem.shard} {problem.key}: {problem.what}")
    if made.problems:
        report = manifest.folder / "report.jsonl"
        say_line(f"{len(made.problems):,} problems, all listed in {report}")
        raise typer.Exit(1)


def tar_progress(update: Any) -> Any:
    """What `adopt` calls after each tar: tars, MB/s of those that were read, kept ones."""
    start, done = time.perf_counter(), [0, 0, 0]

    def progress(tar: Any) -> None:
        done[0] += 1
        done[1] += 0 if tar.kept else max(0, tar.bytes)
        done[2] += tar.kept
        rate = done[1] / 1e6 / (time.perf_counter() - start)
        known = f", {done[2]} were indexed already" if done[2] else ""
        update(completed=done[0], total=tar.total, numbers=f"{rate:,.0f} MB/s{known}")

    return progress


def inspect(
    shards: Annotated[Path, typer.Argument(help="A shard folder.", callback=here)],
    key: Annotated[str | None, typer.Argument(help="A sample to show; default: the set.")] = None,
    row: Annotated[
        int | None,
        typer.Option(help="A sample by its place in the set.", min=0, callback=at_most(MANY)),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the sample's payload there.", callback=in_a_folder)
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List all keys, one a line.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw samples with keys and labels.", callback=picture_file)
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, callback=at_most(MANY), help="Samples on the sheet.")
    ] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what a shard set holds; or show, list, draw or extract its samples.

    Example: `sslpipe inspect shards/sample --sheet sheet.png`
    """
    from ..modalities.finding import find_modality
    from ..shards import read_manifest
    from ..shards.contents import extract_sample, find_key, find_row, list_keys, survey

    asked = {"--keys": keys, "KEY": key is not None, "--row": row is not None}
    check_one({**asked, "--sheet": sheet is not None}, out)
    manifest = read_manifest(shards)
    if keys:
        for found in list_keys(manifest):
            typer.echo(found)
    elif key is not None or row is not None:
        place = find_key(manifest, key) if key is not None else find_row(manifest, row or 0)
        show_sample(extract_sample(manifest, *place), out, as_json)
    elif sheet is not None:
        draw_sheet(manifest, sheet, count)
    else:
        codec = find_modality(manifest.modality, str(shards)).codec
        show_set(survey(manifest, codec), as_json)


def check_one(asked: Mapping[str, bool], out: Path | None) -> None:
    """Raise a ShardError for two questions at once, or for `out` without a sample."""
    given = [name for name, is_given in asked.items() if is_given]
    if len(given) > 1:
        raise ShardError(f"{' and '.join(given)} each ask for something else; give one of them")
    if out is not None and not {"KEY", "--row"}.intersection(given):
        raise ShardError("--out writes one sample: name it by its key or --row")


def show_set(contents: Any, as_json: bool) -> None:
    """Print totals and histograms of a set, or one JSON object."""
    from dataclasses import asdict

    if as_json:
        console.print_json(json.dumps(asdict(contents)))
        return
    totals = Table("", contents.name, title="set")
    for name in ("samples", "excluded", "shards"):
        totals.add_row(name, f"{getattr(contents, name):,}")
    for name, number in contents.flags.items():
        totals.add_row(name.replace("_", " "), f"{number:,}")
    totals.add_row("MB of tars", f"{contents.tar_bytes / 1e6:,.1f}")
    totals.add_row("kB per sample", f"{contents.payload_bytes / contents.samples / 1e3:,.1f}")
    totals.add_row("classes", f"{len(contents.classes):,}")
    totals.add_row("fingerprint", contents.fingerprint)
    console.print(totals)
    console.print(histogram("format", contents.formats))
    if contents.members:
        console.print(histogram("beside it", contents.members))
    console.print(histogram(contents.measure, contents.sizes))
    classes = dict(enumerate(contents.classes))
    named = {classes.get(k, "none" if k < 0 else str(k)): n for k, n in contents.labels.items()}
    console.print(histogram("label", named))


def histogram(title: str, numbers: dict[str, int]) -> Table:
    """Names, numbers, and bars as long as the largest one allows; the first MOST."""
    table = Table(title, "samples", "")
    most, mark = max(numbers.values(), default=1), "#" if console.options.ascii_only else "█"
    for name, number in list(numbers.items())[:MOST]:
        table.add_row(str(name), f"{number:,}", mark * round(30 * number / most))
    if len(numbers) > MOST:
        rest = sum(list(numbers.values())[MOST:])
        table.add_row(f"{len(numbers) - MOST:,} more", f"{rest:,}", "")
    return table


def show_sample(sample: Any, out: Path | None, as_json: bool) -> None:
    """What the index and the members say of one sample."""
    fields = ("key", "uid", "shard", "row", "label", "excluded", "payload")
    shown: dict[str, Any] = {name: getattr(sample, name) for name in fields}
    shown |= {**sample.extent, "flags": ", ".join(sample.flags)}
    members = {ext: readable(ext, data) for ext, data in sample.members.items()}
    if as_json:
        console.print_json(json.dumps(shown | {"members": members}))
    else:
        table = Table("", sample.key)
        for name, value in [*list(shown.items())[1:], *members.items()]:
            table.add_row(name if name in shown else f".{name}", str(value))
        console.print(table)
    if out is not None:
        from ..shards.side_files import replace_file

        replace_file(out, sample.members[sample.payload])
        say_line(f"wrote {out}")


def readable(ext: str, data: bytes) -> str:
    """Text as it is, everything else by its size."""
    if ext.rpartition(".")[2] in ("txt", "cls", "json", "url", "caption"):
        return data.decode("utf-8", "replace")
    return f"{len(data):,} bytes"


def draw_sheet(manifest: Any, path: Path, count: int) -> None:
    """Thumbnails of samples that are spread evenly over the set."""
    from ..modalities.finding import find_modality
    from ..shards.contents import read_payload, spread_samples

    items = []
    for shard, row in spread_samples(manifest, count):
        key, label, data = read_payload(manifest, shard, row)
        known = 0 <= label < len(manifest.classes)
        name = manifest.classes[label] if known else "no label" if label < 0 else f"label {label}"
        items.append((data, (key, name)))
    save_picture(find_modality(manifest.modality, str(path)).thumbnails(items), path)
    say_made(f"wrote {path}: {len(items)} of {manifest.samples:,} samples")

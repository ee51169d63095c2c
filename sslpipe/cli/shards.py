"""The commands of data at rest: pack and verify."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SslpipeError
from .options import Ray
from .paths import CROWD, LARGE, MANY, SIDE, at_most, here, run_folder, url_of
from .terminal import (
    AGAIN,
    ModalityOption,
    adding,
    bar,
    console,
    say_line,
    say_made,
    show_tables,
    stopped,
)  # fmt: skip

if TYPE_CHECKING:  # the package of shards takes a while to import
    from ..shards.verification import Problem


def pack_folder(out: Path) -> Path:
    """The folder of a packing, which may be made.

    Raises:
        SslpipeError: it is a URL, or nothing can be written there.
    """
    if url := url_of(out):
        raise SslpipeError(f"{url}: is a URL; pack into a folder, then copy it there")
    return run_folder(out) or out


class Check(StrEnum):
    """How closely original bytes are looked at."""

    decode = "decode"
    header = "header"


class Dedupe(StrEnum):
    """Names what counts as a repetition of a sample."""

    none = "none"
    exact = "exact"
    near = "near"


Inputs = Annotated[list[str], typer.Argument(help="Folders, tables, tars, zips, .jsonl; s3://...")]
Out = Annotated[Path, typer.Argument(help="A new folder for the shards.", callback=pack_folder)]
Resize = Annotated[
    int | None, typer.Option(help="Shrink the shorter side to it, px.", min=1, max=SIDE)
]
Quality = Annotated[
    int | None, typer.Option(help="JPEG quality when resizing; default: 90.", min=1, max=100)
]
CheckOption = Annotated[Check, typer.Option(help="Of original bytes: all, or the header alone.")]
Megabytes = Annotated[
    float,
    typer.Option(help="Megabytes per shard, about.", min=0.001, callback=at_most(LARGE)),
]
Samples = Annotated[
    int | None, typer.Option(help="Samples per shard instead.", min=1, callback=at_most(MANY))
]
Seed = Annotated[
    int, typer.Option(help="Of the shuffle before packing.", min=0, callback=at_most(2**63 - 1))
]
Columns = Annotated[
    list[str] | None,
    typer.Option(help="Names in a table, as path=file,label=a: path, label, key, text."),
]
DedupeOption = Annotated[Dedupe, typer.Option(help="Drop all but one of equal samples.")]
NearBits = Annotated[
    int | None, typer.Option(help="Of 64 that near ones may differ in; default: 4.", min=0, max=15)
]
Fps = Annotated[
    float | None,
    typer.Option(
        help="Frames per second of folders of pictures; default: 25.",
        min=0.01,
        callback=at_most(100_000),
    ),
]
KeepNames = Annotated[bool, typer.Option("--keep-names", help="Original names as .name.json.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a packing in OUT.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be made; write nothing.")]
LabelsFile = Annotated[
    Path | None, typer.Option("--labels", help="A CSV file of labels by key, which go first.")
]
Workers = Annotated[int | None, typer.Option(help="Default: one per core.", min=1, max=CROWD)]


@contextmanager
def packing_bar() -> Iterator[Any]:
    """A bar that is told of each shard: samples and megabytes per second of a stage, failures."""
    done: dict[str, list[float]] = {}  # stage -> samples, bytes, failures, time of its start
    last = time.perf_counter()

    def tell(packed: Any) -> None:
        nonlocal last
        sums = done.setdefault(packed.stage, [0, 0, 0, last])
        last = time.perf_counter()
        sums[0] += packed.samples
        sums[1] += packed.bytes_in
        sums[2] += packed.failed
        passed = max(time.perf_counter() - sums[3], 1e-3)
        rates = f"{sums[0] / passed:,.0f}/s {sums[1] / 1e6 / passed:,.0f} MB/s"
        numbers = f"{packed.stage}: {rates}, {sums[2]:.0f} failed"
        update(completed=sums[0], total=packed.total, numbers=numbers)

    with bar("samples") as update:
        yield tell


def pack(
    inputs: Inputs,
    out: Out,
    resize: Resize = None,
    quality: Quality = None,
    check: CheckOption = Check.decode,
    shard_mb: Megabytes = 64,
    shard_samples: Samples = None,
    seed: Seed = 0,
    name: Annotated[str | None, typer.Option(help="Default: the first input's.")] = None,
    columns: Columns = None,
    labels: LabelsFile = None,
    dedupe: DedupeOption = Dedupe.none,
    near_bits: NearBits = None,
    keep_names: KeepNames = False,
    fps: Fps = None,
    modality: ModalityOption = "image",
    workers: Workers = None,
    ray: Ray = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Pack files into WebDataset shards with indexes and a manifest.

    First-level folders are the classes. Tables are CSV, TSV, Parquet or a list of paths in .txt.
    Killed? The same command goes on and ends in the same bytes. Every image is decoded once; what
    cannot be is in `report.jsonl`, and the exit code is 1. Without `--resize` original bytes are
    kept. With `--modality video` a folder of numbered pictures is one sample. `--dedupe near` drops
    those that look alike, too. With `--ray` all machines must see inputs and OUT.

    Example: `sslpipe pack photos shards/photos --resize 384 --dedupe exact`
    """
    with stopped(AGAIN):  # the imports take most of the first second
        from .. import shards
        from ..modalities.finding import find_modality

        codec = find_modality(modality, "--modality").codec
    check_together(resize, quality, dedupe, near_bits)
    settings = shards.PackSettings(
        codec=codec, name=name or "", resize=resize, quality=quality or 90, check=check.value,
        shard_bytes=int(shard_mb * 2**20), shard_samples=shard_samples, seed=seed,
        columns=shards.parse_columns(",".join(columns or ())), labels=labels, dedupe=dedupe.value,
        near_bits=4 if near_bits is None else near_bits, keep_names=keep_names, fps=fps,
    )  # fmt: skip
    if dry_run:
        show_tables(shards.estimate(inputs, out, settings, workers=workers).summary)
        return
    with stopped(AGAIN), packing_bar() as tell, shards.open_pool(workers, ray) as pool:
        report = shards.pack(inputs, out, settings, overwrite=overwrite, pool=pool, progress=tell)
    show_packed(report, out)


def check_together(
    resize: int | None, quality: int | None, dedupe: Dedupe, near_bits: int | None
) -> None:
    """Options that without another would do nothing.

    Raises:
        SslpipeError: one of them is alone.
    """
    if quality is not None and resize is None:
        raise SslpipeError(
            f"--quality {quality}: is of pictures that are encoded anew; add --resize"
        )
    if near_bits is not None and dedupe is not Dedupe.near:
        raise SslpipeError(
            f"--near-bits {near_bits}: is of samples that look alike; add --dedupe near"
        )


def show_packed(report: Any, out: Path) -> None:
    """The summary; exit code 1 if anything failed."""
    show_tables(report.summary)
    say_made(f"wrote {out / 'manifest.json'}")
    left = {"skipped": len(report.skipped), "duplicates": len(report.duplicates)}
    if told := ", ".join(f"{number:,} {what}" for what, number in left.items() if number):
        say_line(f"{told}: all listed, with the reason, in {out / 'report.jsonl'}")
    for failure in report.failures[:10]:
        say_line(f"failed: {failure.file}: {failure.reason}")
    if report.failures:
        say_line(f"{len(report.failures)} failed, all listed in {out / 'report.jsonl'}")
        raise typer.Exit(1)


def print_problems(problems: Iterable["Problem"], *, before: str = "") -> None:
    """Print a line for each thing that is wrong with a set."""
    for problem in problems:
        say_line(f"{before}{problem.shard} {problem.key}: {problem.what}")


def verify(
    shards: Annotated[Path, typer.Argument(help="A packed folder.", callback=here)],
    exclude: Annotated[
        bool, typer.Option("--exclude", help="Leave the bad samples out from now on.")
    ] = False,
    exclude_log: Annotated[
        list[Path] | None,
        typer.Option(
            help="Leave out what a run's quarantine.jsonl names.", exists=True, dir_okay=False
        ),
    ] = None,
) -> None:
    """Check hashes, CRCs and that every sample decodes; exit code 1 if anything is wrong.

    To exclude writes a new manifest.json and keeps the old one beside it; the tars stay as they
    are.

    Example: `sslpipe verify shards/sample`
    """
    from ..modalities.finding import find_modality
    from ..shards import exclude_rows, read_manifest, verify
    from ..shards.verification import Problem

    manifest = read_manifest(shards)
    with bar("samples") as update:
        update(total=manifest.samples)
        left_out: list[Problem] = []
        modality = find_modality(manifest.modality, str(shards))
        problems = verify(
            manifest,
            codec=modality.codec,
            progress=adding(update),
            excluded=left_out.append,
        )
        beside = [fault for s in manifest.shards for fault in modality.stored_faults(manifest, s)]
    print_problems([*problems, *beside])
    if exclude or exclude_log:
        new = exclude_rows(manifest, logs=exclude_log or (), problems=problems if exclude else ())
        rows = sum(map(len, new.exclude.values()))
        say_made(f"{rows:,} samples are excluded in {new.folder / 'manifest.json'}")
    if problems or beside:
        raise typer.Exit(1)
    print_problems(left_out, before="excluded: ")
    good = "all others are good" if left_out else "all good"
    console.print(f"{manifest.samples:,} samples in {len(manifest.shards)} shards: {good}")

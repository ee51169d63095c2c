"""The commands of data at rest: pack and verify."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import bar, console, notes


def pack_progress(update: Any) -> Any:
    """What `pack` calls after each file: images, megabytes written, failures."""
    done = [0, 0, 0]

    def progress(packed: Any) -> None:
        done[0] += 1
        done[1] += packed.bytes_out
        done[2] += not packed.ok
        numbers = f"{done[1] / 1e6:,.0f} MB, {done[2]} failed"
        update(completed=done[0], total=packed.total, numbers=numbers)

    return progress


def pack(
    folder: Annotated[Path, typer.Argument(help="Images; first-level folders are classes.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the shards.")],
    resize: Annotated[int | None, typer.Option(help="Shrink the shorter side to it, px.")] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality when resizing.")] = 90,
    shard_mb: Annotated[float, typer.Option(help="Megabytes per shard, about.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the shuffle before packing.")] = 0,
    name: Annotated[str | None, typer.Option(help="Default: the folder's.")] = None,
    threads: Annotated[int | None, typer.Option(help="Default: one per core.")] = None,
) -> None:
    """Pack an image folder into WebDataset shards with indexes and a manifest.

    Every image is decoded once to see that it can be; what cannot is listed in `report.jsonl` and
    the exit code is 1. Without `--resize` the original bytes are kept.

    Example: `sslpipe pack photos shards/photos --resize 384`
    """
    from .image.codec import ImageCodec
    from .shards import pack as pack_shards

    with bar("images") as update:
        report = pack_shards(
            folder,
            out,
            codec=ImageCodec(),
            resize=resize,
            quality=quality,
            shard_bytes=int(shard_mb * 2**20),
            seed=seed,
            name=name,
            threads=threads,
            progress=pack_progress(update),
        )
    manifest = report.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    console.print(
        f"{manifest.samples:,} images in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB, "
        f"{len(manifest.classes)} classes: {out / 'manifest.json'}"
    )
    for failure in report.failures[:10]:
        notes.print(f"failed: {failure.file}: {failure.reason}", markup=False, highlight=False)
    if report.failures:
        notes.print(f"{len(report.failures)} failed, all listed in {out / 'report.jsonl'}")
        raise typer.Exit(1)


def verify(
    shards: Annotated[Path, typer.Argument(help="A packed folder.")],
    exclude: Annotated[
        bool, typer.Option("--exclude", help="Leave the bad samples out from now on.")
    ] = False,
    exclude_log: Annotated[
        list[Path] | None, typer.Option(help="Leave out what a run's quarantine.jsonl names.")
    ] = None,
) -> None:
    """Check hashes, CRCs and that every sample decodes; exit code 1 if anything is wrong.

    To exclude writes a new manifest.json and keeps the old one beside it; the tars stay as they
    are.

    Example: `sslpipe verify shards/sample`
    """
    from .image.codec import ImageCodec
    from .shards import exclude_rows, read_manifest
    from .shards import verify as verify_shards

    manifest = read_manifest(shards)
    with bar("samples") as update:
        update(total=manifest.samples)
        done = [0]

        def progress(samples: int) -> None:
            done[0] += samples
            update(completed=done[0])

        problems = verify_shards(manifest, inspect=ImageCodec().inspect, progress=progress)
    for problem in problems:
        text = f"{problem.shard} {problem.key}: {problem.what}"
        notes.print(text, markup=False, highlight=False)
    if exclude or exclude_log:
        new = exclude_rows(manifest, logs=exclude_log or (), problems=problems if exclude else ())
        rows = sum(map(len, new.exclude.values()))
        console.print(f"{rows:,} samples are excluded in {new.folder / 'manifest.json'}")
    if problems:
        raise typer.Exit(1)
    console.print(f"{manifest.samples:,} samples in {len(manifest.shards)} shards: all good")

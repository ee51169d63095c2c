"""The commands of vocabularies: train one on a set of text, and count its tokens there."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SslpipeError
from .options import (
    Holdout,
    Sentinels,
    Size,
    SizeAlone,
    TextMegabytes,
    TextShards,
    Tokenizer,
    VocabularyFile,
    WithIds,
    WithSentences,
)  # fmt: skip
from .paths import check_writable
from .shards import Workers, print_problems
from .terminal import AGAIN, adding, bar, console, notes, stopped

if TYPE_CHECKING:
    from ..shards.manifest import Manifest

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a vocabulary on a set of text; count its tokens there.",
)


class KindOption(StrEnum):
    """Names the kinds of vocabularies that can be trained."""

    bpe = "bpe"
    wordpiece = "wordpiece"
    unigram = "unigram"
    bytes = "bytes"


@app.command()
def train(
    shards: TextShards,
    kind: Annotated[KindOption, typer.Option(help="bpe alone loses nothing of a text.")],
    size: Size = 260,
    sentinels: Sentinels = 0,
    megabytes: TextMegabytes = 100.0,
    holdout: Holdout = 0.0,
    out: VocabularyFile = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
) -> None:
    """Train a vocabulary on the documents of a set: the same ones give the same file.

    `--holdout` leaves out what recipes hold out for evaluation, which else would leak.

    Example: `sslpipe tokenizer train shards/books --kind bpe --size 8192`
    """
    from ..modalities.text.counting import text_set
    from ..modalities.text.trained import FILE, TrainedVocabulary
    from ..modalities.text.training import TrainSettings, train_vocabulary
    from ..shards.side_files import replace_file

    settings = TrainSettings(
        kind=kind.value, size=size, sentinels=sentinels, megabytes=megabytes, holdout=holdout
    )
    manifest = text_set(shards)
    file = out or manifest.folder / FILE
    check_writable(file, manifest.folder if out is None else file.parent)
    if not overwrite:
        check_new(file)
    with stopped("stopped; nothing was written"), bar("MB of text") as update:
        add = adding(update)
        made = train_vocabulary(manifest, settings, lambda size: add(size / 1e6))
    replace_file(file, made.data)
    print_problems(made.problems[:10])
    ids = settings.size + settings.sentinels
    console.print(
        f"wrote {file}: {ids:,} ids of {made.documents:,} documents, "
        f"{made.text_bytes / 1e6:,.1f} MB; {TrainedVocabulary(str(file), made.data).fingerprint}",
        soft_wrap=True,
    )
    if made.problems:
        notes.print(f"{len(made.problems):,} documents cannot be read; see `sslpipe verify`")
        raise typer.Exit(1)


def check_new(file: Path) -> None:
    """Raise a SslpipeError if there is a file already."""
    if file.exists():
        raise SslpipeError(f"{file}: exists; write elsewhere (--out), or --overwrite it")


@app.command()
def count(
    shards: TextShards,
    tokenizer: Tokenizer = None,
    workers: Workers = None,
    ids: WithIds = False,
    sentences: WithSentences = False,
    dry_run: SizeAlone = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Also count what was counted by it.")
    ] = False,
) -> None:
    """Write how many tokens each document has into the indexes of a set; rows are planned from it.

    With `--ids` a file X.tar.tok beside each tar has the ids, two bytes each, four in a vocabulary
    of more than 65,536; with `--sentences` X.tar.sent has the tokens of each sentence, four bytes
    each, for `packing: sentences`. The tars stay as they are. Do not count while a run reads the
    set.

    Example: `sslpipe tokenizer count shards/books --ids`
    """
    from ..modalities.text.counting import count_tokens, text_set
    from ..modalities.text.trained import FILE
    from ..shards.make.pools import open_pool

    manifest = text_set(shards)
    file = tokenizer or manifest.folder / FILE
    if dry_run:
        say_size(manifest, str(file))
        return
    with stopped(AGAIN), bar("documents") as update, open_pool(workers, None) as pool:
        update(total=manifest.samples)
        found = count_tokens(
            shards, str(file), pool=pool, ids=ids, sentences=sentences, rebuild=rebuild,
            progress=adding(update),
        )  # fmt: skip
    print_problems(found.problems[:10])
    rate = found.text_bytes / max(1, found.tokens)
    console.print(
        f"{found.tokens:,} tokens in {found.documents:,} documents, {rate:.2f} bytes each: "
        f"{found.manifest.folder / 'manifest.json'}",
        soft_wrap=True,
    )
    if found.empty:
        notes.print(f"{found.empty:,} documents have no tokens and stand in no row")
        raise typer.Exit(1)


def say_size(manifest: "Manifest", tokenizer: str) -> None:
    """Print what the files of `count --ids` would take."""
    from ..modalities.text.expected_size import expected_size

    size = expected_size(manifest, tokenizer)
    about = "" if size.is_exact else "about "
    console.print(
        f"{len(manifest.shards):,} files beside the tars of {manifest.folder}, about "
        f"{size.bytes / 1e6:,.1f} MB: {about}{size.tokens:,} tokens of {size.width} bytes; nothing "
        "was written",
        soft_wrap=True,
    )

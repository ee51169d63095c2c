"""Arguments and options that commands share, or that would hide what a command does."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .paths import CROWD, LARGE, MANY, at_most, here, in_a_folder, run_folder


class Precision(StrEnum):
    """Names the numbers that the forward pass calculates with."""

    fp32 = "fp32"
    bf16 = "bf16"


class Documents(StrEnum):
    """Names the documents of `stream.holdout` that perplexity is of."""

    held_out = "held_out"
    train = "train"
    all = "all"


RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")]
Shards = Annotated[
    list[str],
    typer.Option(help="A packed folder or its manifest.json; several to mix: NAME=PATH, repeated."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting of the recipe: stream.batch_size=64"),
]
LabelsFile = Annotated[
    Path | None, typer.Option("--labels", help="A CSV file of labels by uid: stream.labels.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")]

Ray = Annotated[str | None, typer.Option(help="Run on a Ray cluster: auto, or where.")]

# of training
RunFolder = Annotated[Path | None, typer.Option(help="Default: runs/RECIPE.", callback=run_folder)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
WarmStart = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Weights to start with: a run, an exported folder, a file, timm:NAME, "
        "torchvision:NAME.",
    ),
]
MaxSteps = Annotated[
    int | None, typer.Option(help="Stop there; can be resumed.", min=1, callback=at_most(MANY))
]
MonitorSet = Annotated[
    str | None, typer.Option(help="Evaluate on this labelled set meanwhile, as train.monitor says.")
]
MonitorTest = Annotated[
    str | None, typer.Option(help="And test on this one; default: left out in turn.")
]

# of evaluation
Subject = Annotated[
    str,
    typer.Argument(
        help="last.pt of a run, its folder, an exported folder, timm:NAME or torchvision:NAME."
    ),
]
Labelled = Annotated[
    Path, typer.Argument(help="Labelled shards: what is trained on.", callback=here)
]
TestShards = Annotated[
    Path | None,
    typer.Option(help="Shards to test on; default: samples are left out.", callback=here),
]
Protocols = Annotated[
    list[str], typer.Option(help="quick, all, or names with commas: knn,linear,probe_mae ...")
]
Report = Annotated[
    Path | None, typer.Option(help="Also write DIR/report.html.", callback=run_folder)
]
Beside = Annotated[
    list[str] | None, typer.Option(help="Another checkpoint in the same report; may be repeated.")
]
Untrained = Annotated[bool, typer.Option(help="Also the same encoder untrained.")]
Pixels = Annotated[
    bool,
    typer.Option(help="Also raw pixels, mean frames, token counts, spectrograms: k-NN, probe."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse sets whose classes are not the same.")
]
ShardLabels = Annotated[
    Path | None, typer.Option(help="Labels of the shards from a file, before their own.")
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Of protocols that train; default: as officially.", min=1, callback=at_most(MANY)
    ),
]
DocumentPart = Annotated[
    Documents | None,
    typer.Option(help="Of stream.holdout, for perplexity; default: what was held out."),
]
Templates = Annotated[
    Path | None, typer.Option(help="Texts of zero_shot: a file, one a line: a photo of a {}.")
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder of features; default: beside the run.", callback=run_folder),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]

# of frozen features
AnyShards = Annotated[
    Path, typer.Argument(help="A packed folder; it need not have labels.", callback=here)
]
FeatureFile = Annotated[
    Path, typer.Option(help="The file to write, .safetensors.", callback=in_a_folder)
]
WithPixels = Annotated[
    bool, typer.Option("--pixels", help="Also raw pixels; of text, counts of its tokens.")
]
BatchSize = Annotated[int, typer.Option(help="Samples at a time.", min=1, callback=at_most(MANY))]
ForwardPrecision = Annotated[
    Precision, typer.Option(help="Of the forward pass; bf16 is faster on GPUs.")
]
RayWorkers = Annotated[
    int | None,
    typer.Option(help="With --ray; default: one per GPU, or per core.", min=1, max=CROWD),
]

# of vocabularies: the command itself says what each kind takes
TextShards = Annotated[Path, typer.Argument(help="A packed folder of text.", callback=here)]
Size = Annotated[
    int,
    typer.Option(
        help="Of the vocabulary, special tokens included; bytes: 260.", callback=at_most(MANY)
    ),
]
Sentinels = Annotated[
    int, typer.Option(help="On top, at the end; T5: 100.", callback=at_most(MANY))
]
TextMegabytes = Annotated[
    float,
    typer.Option(help="Of text at most, about; else a sample.", callback=at_most(LARGE)),
]
Holdout = Annotated[
    float,
    typer.Option(help="stream.holdout.fraction of recipes to come.", callback=at_most(LARGE)),
]
VocabularyFile = Annotated[
    Path | None,
    typer.Option(help="Default: tokenizer.json beside the shards.", callback=in_a_folder),
]
Tokenizer = Annotated[Path | None, typer.Option(help="Default: tokenizer.json beside the shards.")]
WithIds = Annotated[
    bool, typer.Option("--ids", help="Keep the ids, too: no run tokenises them again.")
]
WithSentences = Annotated[
    bool, typer.Option("--sentences", help="Count those of sentences, for rows of whole ones.")
]
SizeAlone = Annotated[
    bool, typer.Option("--dry-run", help="Say how large the ids would be, and stop.")
]

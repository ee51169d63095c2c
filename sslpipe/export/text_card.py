"""The model card of an encoder of text; what it has in common with those of images is theirs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..modalities.text.decider import Tokens
from .model_card import CardRow, head, origins, results
from .trained import Trained

TASKS = {
    "gpt2": "text-generation",
    "bert": "fill-mask",
    "electra": "feature-extraction",
    "t5": "text2text-generation",
}
ALONE = ("BertModel", "ElectraModel")  # without an output layer
HIDDEN = """```python
from transformers import AutoModel, AutoTokenizer

tokenizer, model = (kind.from_pretrained("{folder}") for kind in (AutoTokenizer, AutoModel))
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
states = {call}.last_hidden_state  # (B, L, {dim})
mask = batch["attention_mask"][..., None]
features = (states * mask).sum(1) / mask.sum(1)  # (B, {dim}): what sslpipe evaluates
```"""
ROWS = """A row holds one document here. In training, documents were packed in rows, and none saw
another: to pack rows yourself, give `position_ids` that begin anew with each document and a mask of
four dimensions (`attention_mask`, (B, 1, L, L)) that is False between documents; `attention_mask`
of two dimensions lets all documents of a row see each other, and their states are others."""


class TextUse(NamedTuple):
    """What a reader has to know. lacking: why there is no tokenizer; "": there is one."""

    kind: str  # model_type
    architecture: str
    tokens: Tokens
    lacking: str


def text_card(
    trained: Trained,
    name: str,
    formats: Sequence[str],
    use: TextUse,
    license_name: str,
    measures: Sequence[CardRow],
) -> str:
    """Write the card of the model `name`, which is the name of its folder."""
    loads = "hf" in formats
    alone = not loads or use.architecture in ALONE
    task = "feature-extraction" if alone else TASKS[use.kind]
    library = "transformers" if loads else None
    parts = [
        head(name, license_name, measures, task=task, library=library),
        f"# {name}",
        about(trained, use),
        *(usage(trained, name, use) if loads else ()),
        f"`sslpipe train RECIPE --shards SHARDS --from {name}` starts from these weights.",
        "## Tokens",
        tokens_told(use),
        *results(measures),
        "## Recipe",
        "The same as `recipe.yaml`; `sslpipe train recipe.yaml --shards SHARDS` trains it again.",
        f"```yaml\n{trained.recipe_yaml.rstrip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def about(trained: Trained, use: TextUse) -> str:
    """What was trained, how long, on what."""
    recipe = trained.recipe
    assert recipe.method is not None
    assert recipe.train is not None
    rows = recipe.stream.batch_size * recipe.train.accumulate
    return (
        f"A {recipe.train.backbone.name} pretrained without labels by sslpipe: method "
        f"`{recipe.method.name}`, after {trained.step:,} steps of {rows} rows of "
        f"{use.tokens.length} tokens.\n\n{origins(trained)}"
    )


def usage(trained: Trained, folder: str, use: TextUse) -> Iterator[str]:
    """Yield the lines of the model card that say how the folder is loaded."""
    asked = "input_ids=batch['input_ids'], attention_mask=batch['attention_mask']"
    call = f"model.get_encoder()({asked})" if use.kind == "t5" else f"model({asked})"
    dim = trained.encoder.dim
    yield "## Use"
    yield HIDDEN.format(folder=folder, call=call, dim=dim)
    if use.architecture not in ALONE:
        yield f"With its output layer: `transformers.{use.architecture}.from_pretrained(...)`."
    if use.kind == "bert":
        yield "There is no pooler: `pooler_output` comes of random weights, do not use it."
    yield ROWS


def tokens_told(use: TextUse) -> str:
    """What a text is made into."""
    tokens = use.tokens
    ends = [name for name, there in (("`<s>`", tokens.begin), ("`</s>`", tokens.end)) if there]
    around = f"with {' and '.join(ends)} around it" if ends else "nothing around it"
    kind = "bytes of UTF-8 plus 4" if tokens.vocabulary.startswith("bytes") else "`tokenizer.json`"
    there = f"There is no tokenizer here: {use.lacking}." if use.lacking else ""
    return (
        f"Ids: {kind}; 0 is padding, 1 `<s>`, 2 `</s>`, 3 `<mask>`. A document is its text, "
        f"{around}, cut to {tokens.length} tokens; a byte-order mark is dropped, "
        f"and CR LF and CR are LF, which the tokenizer does not do by itself. {there}".rstrip()
    )

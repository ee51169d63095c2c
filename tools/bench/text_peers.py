"""The peers of text.py: HF datasets with its collators, TRL's packing; missing ones are named."""

import importlib.metadata
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from text_shapes import Shape
from torch.utils.data import DataLoader

PEERS = ("transformers", "datasets", "trl")
SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}


def versions() -> list[str]:
    """Those that are installed."""
    return [name for name in PEERS if is_there(name)]


def is_there(name: str) -> bool:
    """Whether a peer is installed."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def cases(texts: list[str], setting: Any, folder: Path) -> tuple[dict, dict, dict]:
    """Epochs of the peers, seconds that they prepare, and what their packings make of documents."""
    for name in PEERS:
        if not is_there(name):
            print(
                f"{name} is missing: pip install --target PEERS {name} --no-deps, PYTHONPATH=PEERS"
            )
    if not (is_there("datasets") and is_there("transformers")):
        return {}, {}, {}
    import datasets
    from transformers import (
        DataCollatorForLanguageModeling,
        DataCollatorWithFlattening,
        PreTrainedTokenizerFast,
    )

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(setting.vocabulary), **SPECIALS)
    took: dict[str, float] = {}

    def tokenised(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)
        return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in found["input_ids"]]}

    raw = datasets.Dataset.from_dict({"text": texts})
    ids, took["datasets: map, tokenise"] = timed(
        lambda: raw.map(tokenised, batched=True, remove_columns=["text"])
    )
    chunks, took["datasets: map, concatenate and cut (run_clm, run_mlm)"] = timed(
        lambda: ids.map(lambda batch: grouped(batch, setting.length), batched=True)
    )
    cut, took["datasets: map, truncate"] = timed(
        lambda: ids.map(lambda b: {"input_ids": [x[: setting.length] for x in b["input_ids"]]},
                        batched=True)
    )  # fmt: skip
    mlm = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    causal = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    streamed = datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset()
    fly = streamed.map(tokenised, batched=True, remove_columns=["text"]).map(
        lambda batch: grouped(batch, setting.length), batched=True
    )
    lengths = np.array([len(x) for x in ids["input_ids"]])
    found = {
        "datasets, concatenated, MLM": epoch(chunks, mlm, setting, shuffle=True),
        "datasets, concatenated, causal": epoch(chunks, causal, setting, shuffle=True),
        "datasets, on the fly, MLM": epoch(fly, mlm, setting),
        "datasets, on the fly, causal": epoch(fly, causal, setting),
        "datasets, one a row, flattened, causal": epoch(
            cut, DataCollatorWithFlattening(), setting, shuffle=True
        ),
    }
    total = int(lengths.sum())
    shapes = {
        "datasets, concatenated": Shape(1.0, cut_share(lengths, setting.length),
                                        1 - setting.length * len(chunks) / total),
        "datasets, one a row, padded": one_a_row(lengths, setting.length, Shape),
    }  # fmt: skip
    if is_there("trl"):
        add_trl(ids, setting, (found, took, shapes), Shape)
    return found, took, shapes


def add_trl(ids: Any, setting: Any, tables: tuple[dict, dict, dict], shape: Any) -> None:
    """TRL's best-fit decreasing, once truncating, its default, and once splitting."""
    from transformers import DataCollatorWithFlattening
    from trl import pack_dataset

    found, took, shapes = tables
    total = sum(map(len, ids["input_ids"]))
    for strategy in ("bfd", "bfd_split"):
        packed, took[f"trl: pack_dataset, {strategy}"] = timed(
            lambda strategy=strategy: pack_dataset(ids, setting.length, strategy)
        )
        tokens = sum(map(sum, packed["seq_lengths"]))
        fill = tokens / (setting.length * len(packed))
        shapes[f"trl, {strategy}"] = shape(fill, 0.0, 1 - tokens / total)
    rows = packed.remove_columns(["seq_lengths"])
    found["trl, bfd_split, flattened, causal"] = epoch(
        rows, DataCollatorWithFlattening(), setting, shuffle=True
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and its seconds."""
    start = time.perf_counter()
    made = work()
    return made, time.perf_counter() - start


def grouped(batch: dict[str, list[list[int]]], length: int) -> dict[str, list[list[int]]]:
    """`group_texts` of the scripts run_clm and run_mlm: the rest of 1,000 documents is dropped."""
    joined = list(itertools.chain.from_iterable(batch["input_ids"]))
    return {
        "input_ids": [
            joined[at : at + length] for at in range(0, len(joined) // length * length, length)
        ]
    }


def epoch(
    dataset: Any, collator: Any, setting: Any, *, shuffle: bool = False
) -> Callable[[], tuple[int, int]]:
    """An epoch of a loader: rows and tokens; those of a flattened batch are what it was made of."""
    loader = DataLoader(
        dataset, setting.batch, shuffle=shuffle or None, collate_fn=collator, drop_last=True,
        num_workers=setting.workers,
    )  # fmt: skip

    def run() -> tuple[int, int]:
        rows = tokens = 0
        for batch in loader:
            ids = batch["input_ids"]
            rows += setting.batch
            mask = batch.get("attention_mask")
            tokens += int(mask.sum()) if mask is not None else ids.numel()
        return rows, tokens

    return run


def cut_share(lengths: np.ndarray, length: int) -> float:
    """Of the documents that fit in a row, the share that concatenation cuts (1,000 at a time)."""
    fits = cuts = 0
    for at in range(0, len(lengths), 1000):
        some = lengths[at : at + 1000]
        ends = np.cumsum(some)
        starts = ends - some
        inside = (starts // length) == ((ends - 1) // length)
        fits += int((some <= length).sum())
        cuts += int((~inside & (some <= length)).sum())
    return cuts / fits


def one_a_row(lengths: np.ndarray, length: int, shape: Any) -> Any:
    """A document a row, cut off, padded to the length of rows."""
    kept = np.minimum(lengths, length)
    return shape(kept.sum() / (length * len(lengths)), 0.0, 1 - kept.sum() / lengths.sum())


def skipping(folder: Path, documents: int) -> str:
    """How long datasets takes to the end of so many short documents: by skip, and by its state."""
    if not is_there("datasets"):
        return " (datasets is missing)"
    import datasets

    file = folder / f"short-{documents}.jsonl"
    if not file.exists():
        file.write_text(
            "".join(json.dumps({"text": f"line {n} "}) + "\n" for n in range(documents))
        )
    opened = datasets.load_dataset(
        "json", data_files=str(file), split="train", streaming=True, cache_dir=str(folder / "hf")
    )
    _, skip = timed(lambda: next(iter(opened.skip(documents - 32))))
    for seen, _ in enumerate(opened, start=1):
        if seen == documents - 32:
            state = opened.state_dict()
            break
    opened.load_state_dict(state)
    _, resume = timed(lambda: next(iter(opened)))
    return f" (datasets: {skip:.1f} s by skip, {resume:.1f} s by its state)"

"""Attention of packed rows on CUDA: what our encoders do, against what knows documents; one JSON
line per row, printed at once and kept in OUT/attention.jsonl. Under two minutes on an H100.

    python tools/bench/gpu_attention.py --out OUT [--seconds 110]
    python tools/bench/gpu_attention.py --out OUT --device cpu --dry     # tiny, nothing compiled

Rows are those of `best_fit` for documents of lognormal lengths, a batch of 16,384 steps, 12 heads
of 64, bfloat16; gpt is causal, bert and t5 are not, t5 adds a learned bias of relative positions.

sdpa       today: scaled_dot_product_attention with a dense mask (t5: with dense scores)
flex       FlexAttention with a block mask of the documents; t5's bias is its score_mod
varlen     torch.nn.attention.varlen, a document a sequence; it has no bias
nested     scaled_dot_product_attention of jagged tensors, a document a sequence; no bias
unmasked   the flash kernel of whole rows, which computes something else: a limit

apart      largest difference of outputs and gradients from float32, over the largest value; at
           most twice that of `sdpa` (or .01) is right
mask_ms    what is made once a batch for all layers, of documents that are on the device
           (mask_eager_ms: the block mask without torch.compile)
forward_ms, both_ms   one layer, forward (what its backward needs is kept), and with its backward
us_per_step   of a row, of 12 layers with their backward, what is made once included

If it pays: `encoders/tokens.py` alone changes. `allowed(documents_BL, causal=)` is where every
encoder gets what a token may see, and `attend` where it is used, so `allowed` would give a
BlockMask where documents are on CUDA and rows are as long as those that gain here, and `attend`
would call the compiled flex_attention for one. T5's `ScoreBias` would hand on its bias by offset,
(H, 2 L - 1), as a score_mod instead of scores of all pairs. None of the contenders drops attention
weights: BERT, ELECTRA, RoBERTa and T5 at their papers' dropout of .1 stay with `sdpa` in training;
GPT-2, ALBERT and all evaluation may gain.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_contenders import CONTENDERS, MODELS, Contender, Packed, flex, sdpa
from gpu_augment import timed
from torch import Tensor

from sslpipe.encoders.t5 import BUCKETS, bucket_of
from sslpipe.encoders.tokens import allowed
from sslpipe.stream.packing import PACKERS

Row = dict[str, Any]
LAYERS, WINDOW = 12, 1024
HALF = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Size:
    """On which device, how much of what, and how often."""

    device: torch.device
    lengths: tuple[int, ...]
    means: tuple[int, ...]  # steps of documents
    steps: int  # of a batch
    heads: int
    width: int  # of a head
    repeats: int
    compiled: bool


FULL = partial(
    Size, lengths=(1024, 512, 2048, 4096), means=(150, 600), steps=2**14, heads=12, width=64,
    repeats=10, compiled=True,
)  # fmt: skip
DRY = partial(
    Size, lengths=(64,), means=(20,), steps=128, heads=2, width=16, repeats=2, compiled=False
)


def packed_rows(model: str, length: int, mean: int, size: Size) -> Packed:
    """Rows of our packer, drawn by these numbers alone."""
    rng = np.random.default_rng([length, mean])
    lengths = np.maximum(1, rng.lognormal(np.log(mean) - 0.5, 1.0, WINDOW)).astype(np.int64)
    made = PACKERS["best_fit"](lengths, length)
    documents = np.full((made.row_count, length), -1)
    for number, (row, begin) in enumerate(zip(made.rows, made.columns, strict=True)):
        inside = number - np.searchsorted(made.rows, row)
        documents[row, begin : begin + made.lengths[number]] = inside
    documents = documents[rng.permutation(made.row_count)[: size.steps // length]]
    bias = None
    if model == "t5":
        table = torch.from_numpy(rng.normal(0, 1, (BUCKETS, size.heads))).float()
        places = torch.arange(1 - length, length)
        bias = table[bucket_of(places, both=True)].T.contiguous().to(size.device)
    there = torch.from_numpy(documents).to(size.device)
    return Packed(there, size.heads, size.width, model == "gpt", bias, size.compiled)


def inputs_of(packed: Packed, dtype: torch.dtype, *, trains: bool) -> list[Tensor]:
    """q, k, v and the gradient of what is found, (B, L, D) each."""
    device = packed.documents_BL.device
    generator = torch.Generator(device).manual_seed(0)
    shape = *packed.documents_BL.shape, packed.heads * packed.width
    drawn = [torch.randn(shape, generator=generator, device=device) for _ in range(4)]
    if packed.bias_HO is not None:  # without a scale
        drawn[0] /= packed.width**0.5
    inputs = [x.to(HALF).to(dtype) for x in drawn]
    return [*(x.requires_grad_(trains) for x in inputs[:3]), inputs[3]]


def outcome(contender: Contender, packed: Packed, dtype: torch.dtype) -> list[Tensor]:
    """What is found, and its gradients to q, k, v and to the bias, of all steps."""
    *qkv, grad = inputs_of(packed, dtype, trains=contender.trains)
    if not contender.trains:
        return [contender.found(*qkv, contender.prepare()).detach()]
    leaves = qkv if packed.bias_HO is None else [*qkv, packed.bias_HO.requires_grad_()]
    out = contender.found(*qkv, contender.prepare())
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def apart(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest difference, over the largest value; of what `got` has."""
    pairs = zip(got, want, strict=False)
    off = [(a.float() - b).abs().max() / b.abs().max() for a, b in pairs]
    return torch.stack(off).max().item()  # NaN where one is


def measured(name: str, packed: Packed, size: Size, want: list[Tensor], most: float | None) -> Row:
    """Right, then how long; most: how far from float32 it may be, None: as far as it is."""
    contender, found = CONTENDERS[name](packed), dict[str, Any]()
    if name != "unmasked":
        found = {"apart": apart(outcome(contender, packed, HALF), want), "most": most}
        assert most is None or found["apart"] <= most, f"not right: {found}"
    q, k, v, grad = inputs_of(packed, HALF, trains=contender.trains)
    took = partial(timed, device=size.device, repeats=size.repeats)
    mask = took(contender.prepare)
    if name == "flex" and size.compiled:
        found["mask_eager_ms"] = took(flex(packed, eager_mask=True).prepare)["done_ms"]
    made, leaves = contender.prepare(), [q, k, v]
    if isinstance(made, Tensor) and made.requires_grad:
        made = made.detach().requires_grad_()
        leaves.append(made)
    elif packed.bias_HO is not None and name == "flex":
        leaves.append(packed.bias_HO)
    forward = took(lambda: contender.found(q, k, v, made))
    found |= {"mask_ms": mask["done_ms"], "forward_ms": forward["done_ms"]}
    if not contender.trains:
        return found
    both = took(lambda: torch.autograd.grad(contender.found(q, k, v, made), leaves, grad))
    whole = mask["done_ms"] + LAYERS * both["done_ms"]
    return {
        **found, "both_ms": both["done_ms"], "host_ms": both["host_ms"],
        "us_per_step": 1e3 * whole / packed.documents_BL.numel(),
    }  # fmt: skip


def rows_of(size: Size, until: float) -> Iterator[Row]:
    """Per length, model, mean and contender; a case that fails says why, and the next one runs."""
    for length in size.lengths:
        for model in MODELS:
            for mean in size.means:
                yield from case(model, length, mean, size, until)


def case(model: str, length: int, mean: int, size: Size, until: float) -> Iterator[Row]:
    """A row per contender, what float32 gives first."""
    packed = packed_rows(model, length, mean, size)
    seen = allowed(packed.documents_BL, causal=packed.causal).float().mean().item()
    about = {"model": model, "length": length, "mean": mean, "seen": round(seen, 4)}
    want: list[Tensor] = []
    most = None
    for name in MODELS[model]:
        row = {"part": "attention", **about, "contender": name}
        try:
            if time.monotonic() > until:
                raise TimeoutError("no time left; set --seconds")
            want = want or outcome(sdpa(packed), packed, torch.float32)
            row |= measured(name, packed, size, want, most)
            most = max(2 * row["apart"], 0.01) if name == "sdpa" else most
        except Exception as error:  # the next one is to run
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        yield row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--device", default="cuda")
    options.add_argument("--seconds", type=float, default=110.0)
    options.add_argument("--dry", action="store_true")
    chosen = options.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_attention: no CUDA device; to see that it runs: --device cpu --dry")
    until = time.monotonic() + chosen.seconds
    chosen.out.mkdir(parents=True, exist_ok=True)
    size = (DRY if chosen.dry else FULL)(torch.device(chosen.device))
    torch._dynamo.config.recompile_limit = 64  # a shape each; behind it, nothing is compiled
    with (chosen.out / "attention.jsonl").open("w") as file:
        for row in rows_of(size, until):
            print(json.dumps(row), flush=True)
            print(json.dumps(row), file=file, flush=True)


if __name__ == "__main__":
    main()

"""What gpu_attention.py measures: attention of packed rows, each kind as a Contender."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sslpipe.encoders.t5 import ScoreBias
from sslpipe.encoders.tokens import allowed, attend


class Packed(NamedTuple):
    """Rows with documents, and how they are attended to."""

    documents_BL: Tensor  # the first of `Batch.segments`: its number in the row; -1: padding
    heads: int
    width: int  # of a head
    causal: bool
    bias_HO: Tensor | None  # of offsets -(L - 1) to L - 1 of a key from its query
    compiled: bool  # where a contender can be

    @property
    def scale(self) -> float | None:
        """Of scores, None: 1 / root of a head's width; T5 has none."""
        return None if self.bias_HO is None else 1.0

    def in_heads(self, x_BLD: Tensor) -> Tensor:
        """(B, H, L, W)."""
        return x_BLD.view(*x_BLD.shape[:2], self.heads, -1).transpose(1, 2)


class Contender(NamedTuple):
    """prepare: makes what all layers of a batch need; found: a layer's (B, L, D) of q, k, v.

    trains: it has a backward here.
    """

    prepare: Callable[[], Any]
    found: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    trains: bool = True


def sdpa(packed: Packed) -> Contender:
    """As encoders/tokens.py and encoders/t5.py do it."""
    heads = packed.heads

    def prepare() -> Tensor:
        mask = allowed(packed.documents_BL, causal=packed.causal)
        if packed.bias_HO is None:
            return mask
        offsets = offsets_of(mask.shape[-1], mask.device)
        return ScoreBias(mask, packed.bias_HO[:, offsets][None]).scores_BHLS

    def found(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        seen = seen if packed.bias_HO is None else seen.to(q.dtype)
        return attend(q, k, v, seen, heads, scale=packed.scale)

    return Contender(prepare, found)


def flex(packed: Packed, *, eager_mask: bool = False) -> Contender:
    """By FlexAttention; eager_mask: only its block mask is not compiled."""
    documents, bias, causal = packed.documents_BL, packed.bias_HO, packed.causal
    rows, length = documents.shape
    compiled = packed.compiled
    attention = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    blocks = create_block_mask
    if compiled and not eager_mask:
        blocks = torch.compile(create_block_mask, dynamic=False)

    def same(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return documents[b, q] == documents[b, k]

    def before(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (documents[b, q] == documents[b, k]) & (q >= k)

    def placed(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + bias[h, k - q + length - 1]

    def prepare() -> Any:
        seen = before if causal else same
        return blocks(seen, rows, None, length, length, device=documents.device)

    def found(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        parts = (packed.in_heads(x) for x in (q, k, v))
        score = None if bias is None else placed
        out = attention(*parts, score_mod=score, block_mask=mask, scale=packed.scale)
        return out.transpose(1, 2).flatten(2)

    return Contender(prepare, found, trains=documents.is_cuda)


class Runs(NamedTuple):
    """Documents, and what is empty, behind each other over all rows: where each begins, (N + 1,)
    int32, and the longest.
    """

    edges: Tensor
    longest: int


def runs_of(documents_BL: Tensor) -> Runs:
    """Of rows behind each other; no step is moved, as padding is a sequence of its own."""
    rows = torch.arange(len(documents_BL), device=documents_BL.device)[:, None]
    flat = (documents_BL + rows * (documents_BL.shape[1] + 1)).flatten()
    inner = torch.nonzero(flat[1:] != flat[:-1])[:, 0] + 1
    edges = F.pad(inner, (1, 1))
    edges[-1] = len(flat)
    return Runs(edges.int(), int(edges.diff().max()))


def varlen(packed: Packed) -> Contender:
    """By torch's varlen, whose word for causal changed behind 2.10."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    causal = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}

    def found(q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
        parts = (x.view(-1, packed.heads, packed.width) for x in (q, k, v))
        around = runs.edges, runs.edges, runs.longest, runs.longest
        return varlen_attn(*parts, *around, **(causal if packed.causal else {})).view_as(q)

    return Contender(lambda: runs_of(packed.documents_BL), found)


def nested(packed: Packed) -> Contender:
    """By jagged tensors."""

    def found(q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
        parts = (
            torch.nested.nested_tensor_from_jagged(
                x.view(-1, packed.heads, packed.width), runs.edges.long(),
                min_seqlen=1, max_seqlen=runs.longest,
            ).transpose(1, 2)
            for x in (q, k, v)
        )  # fmt: skip
        out = F.scaled_dot_product_attention(*parts, is_causal=packed.causal)
        return out.transpose(1, 2).values().reshape(q.shape)

    return Contender(lambda: runs_of(packed.documents_BL), found)


def unmasked(packed: Packed) -> Contender:
    """Whole rows, by the flash kernel where there is one."""

    def found(q: Tensor, k: Tensor, v: Tensor, _: None) -> Tensor:
        parts = (packed.in_heads(x) for x in (q, k, v))
        kernels = [SDPBackend.FLASH_ATTENTION, *([] if q.is_cuda else [SDPBackend.MATH])]
        with sdpa_kernel(kernels):
            out = F.scaled_dot_product_attention(*parts, is_causal=packed.causal)
        return out.transpose(1, 2).flatten(2)

    return Contender(lambda: None, found)


CONTENDERS: Mapping[str, Callable[[Packed], Contender]] = MappingProxyType(
    {"sdpa": sdpa, "flex": flex, "varlen": varlen, "nested": nested, "unmasked": unmasked}
)
MODELS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "gpt": tuple(CONTENDERS), "bert": tuple(CONTENDERS), "t5": ("sdpa", "flex", "unmasked"),
})  # fmt: skip


def offsets_of(length: int, device: torch.device) -> Tensor:
    """Number of the offset of each key from each query, (L, L), from 0 on."""
    places = torch.arange(length, device=device)
    return places[None, :] - places[:, None] + length - 1

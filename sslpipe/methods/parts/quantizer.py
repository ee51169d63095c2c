"""A product quantiser by Gumbel softmax, wav2vec 2.0's, and how many of its entries are in use.

fairseq, modules/gumbel_vector_quantizer.py. Letters: M vectors of a sample, C numbers of each, G
codebooks of Q entries, D numbers of the entries of all books together.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .heads import at_least_fp32

EPS = 1e-7  # of logarithms of probabilities, as officially


def perplexity(mean_GQ: Tensor) -> Tensor:
    """Count the entries that a mean choice uses: exp of its entropy, summed over books."""
    return torch.exp(-(mean_GQ * (mean_GQ + EPS).log()).sum(-1)).sum()


class Quantised(NamedTuple):
    """Vectors (B, M, D) of chosen entries, their numbers (B, M, G), and what chose them."""

    vectors_BMD: Tensor
    codes_BMG: Tensor
    logits_BMGQ: Tensor  # at least fp32


class GumbelQuantizer(nn.Module):
    """Chooses an entry of each codebook; names are those of transformers' module."""

    def __init__(self, inputs: int, *, books: int, entries: int, dim: int) -> None:
        super().__init__()
        self.books = books
        self.codevectors = nn.Parameter(torch.rand(1, books * entries, dim // books))
        self.weight_proj = nn.Linear(inputs, books * entries)
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)

    def forward(self, x_BMC: Tensor, temperature: Tensor) -> Quantised:
        """Choose by logits with Gumbel noise in training, the largest one otherwise.

        The choice is hard; its gradient is that of the softmax at `temperature` (Jang et al. 2016,
        arXiv:1611.01144, straight-through). The noise follows torch's generator, which the trainer
        keys by seed, step and rank.
        """
        with torch.autocast(x_BMC.device.type, enabled=False):
            logits_BMV = self.weight_proj(at_least_fp32(x_BMC))
            logits_BMGQ = logits_BMV.view(*logits_BMV.shape[:2], self.books, -1)
            drawn_BMGQ = logits_BMGQ
            if self.training:
                drawn_BMGQ = logits_BMGQ - torch.empty_like(logits_BMGQ).exponential_().log()
            codes_BMG = drawn_BMGQ.argmax(-1)
            soft_BMGQ = (drawn_BMGQ / temperature).softmax(-1)
            hard_BMGQ = torch.zeros_like(soft_BMGQ).scatter(-1, codes_BMG[..., None], 1.0)
            # in this order the value is exactly the entry: soft - soft is 0, whatever rounds
            chosen_BMGQ = hard_BMGQ + (soft_BMGQ - soft_BMGQ.detach())
            books_GQD = self.codevectors.view(self.books, -1, self.codevectors.shape[2])
            vectors = torch.einsum("bmgq,gqd->bmgd", chosen_BMGQ, books_GQD).flatten(2)
        return Quantised(vectors, codes_BMG, logits_BMGQ)


@torch.no_grad()
def code_perplexity(found: Quantised, real_BM: Tensor) -> Tensor:
    """How many entries are in use, a scalar in [G, G Q]: the perplexity of the largest logits.

    Without noise; `real_BM` False: not counted.
    """
    best_BMG1 = found.logits_BMGQ.argmax(-1, keepdim=True)
    ones_BMG1 = real_BM[..., None, None].to(found.logits_BMGQ.dtype).expand_as(best_BMG1)
    counts_GQ = torch.zeros_like(found.logits_BMGQ).scatter(-1, best_BMG1, ones_BMG1).sum((0, 1))
    return perplexity(counts_GQ / real_BM.sum().clamp_min(1))

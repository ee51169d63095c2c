"""What methods on tokens share: their group, and a loss that counts tokens."""

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ...batch import IGNORED, Batch, BatchSpec
from ...errors import ContractError
from ...process import group_ranks
from ..method import Method
from .checks import check_axes
from .heads import at_least_fp32


class Guesses(NamedTuple):
    """What a method holds each token to be that it is asked for.

    Every row of the batch has N / B of the N places, behind those of the row before.
    """

    logits_NK: Tensor
    targets_N: Tensor  # ids, IGNORED: not asked for
    weight: Tensor  # see `tokens_a_rank`


class TokenMethod(Method):
    """A method that gives each token that it asks for a probability, which evaluation reads."""

    asked_for = "token"  # in words
    # it asks for each token of a document but the first, from those before it: what it loses is
    # the length of a code of the text
    codes_text = False

    @abstractmethod
    def guesses(self, batch: Batch) -> Guesses:
        """The logits of all tokens that are asked for."""


def one_text_group(method: str, spec: BatchSpec) -> str:
    """The group of tokens of a batch.

    Raises:
        ContractError: there is none, or several.
    """
    remedy = "Write modality: text and views: {tokens: {ops: [Tokens: {length: 256}]}}"
    return one_group_of(method, spec, "tokens", remedy)


def one_group_of(method: str, spec: BatchSpec, what: str, remedy: str) -> str:
    """The one view group of axes "L", which holds `what`.

    Raises:
        ContractError: there is none, or several; ends with the remedy.
    """
    groups = [name for name, view in spec.views.items() if view.axes == "L"]
    if len(groups) != 1:
        raise ContractError(
            f"{method} needs one group of {what}; this recipe has {len(groups)}. {remedy}"
        )
    return groups[0]


def mean_over_tokens(
    logits_NK: Tensor, targets_N: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Average the cross entropy over the tokens of all ranks; a scalar, 0 if none is asked for.

    logits of any float type, targets int64, IGNORED: not asked for. A mean over the ranks' means
    would weigh a token by how few a rank has; here the mean over ranks of what is returned, which
    DDP takes, is the sum over all tokens by their number. weight: what `tokens_a_rank` says of the
    targets, where it is known already.
    """
    check_axes("mean_over_tokens", logits_NK=logits_NK, targets_N=targets_N)
    with torch.autocast(logits_NK.device.type, enabled=False):
        total = F.cross_entropy(
            at_least_fp32(logits_NK), targets_N, ignore_index=IGNORED, reduction="sum"
        )
    return total / at_least_one(tokens_a_rank(targets_N != IGNORED) if weight is None else weight)


def tokens_a_rank(asked: Tensor) -> Tensor:
    """How many are asked for on all ranks, by the number of ranks; a float32 scalar.

    It is what a mean over tokens weighs among accumulated batches (`Output.weight`).
    """
    count, ranks = asked.sum().to(torch.float32), group_ranks().size
    if ranks > 1:
        dist.all_reduce(count)
    return count / ranks


def at_least_one(weight: Tensor) -> Tensor:
    """A divisor above 0: the weight (any shape), or that of one token where there is none."""
    return weight.clamp_min(1.0 / group_ranks().size)


def accuracy(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
    """The share of this rank's tokens that are guessed right; 0 if none is asked for."""
    right = (logits_NK.argmax(1) == targets_N).sum()
    return right / (targets_N != IGNORED).sum().clamp_min(1)


class ChosenTokens(NamedTuple):
    """The tokens of a task, padded to the row that has most. weight: see `tokens_a_rank`."""

    places_BS: Tensor  # in their rows
    targets_N: Tensor  # B S ids, IGNORED: padding
    weight: Tensor


def chosen_tokens(batch: Batch, task: str) -> ChosenTokens:
    """The tokens that a task asks for; how many there are is known on the host.

    A boolean index would find them, too, and wait for the device to tell how many there are.
    """
    targets_BL = batch.targets[task][0]
    asked_BL = targets_BL != IGNORED
    order_BL = asked_BL.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    places_BS = order_BL[:, : max(1, int(batch.hidden[task].max()))]
    chosen_BS = targets_BL.gather(1, places_BS)
    return ChosenTokens(places_BS, chosen_BS.flatten(), tokens_a_rank(asked_BL))


def states_at(states_BLD: Tensor, places_BS: Tensor) -> Tensor:
    """The states of chosen tokens, (N, D), N = B S."""
    index = places_BS[..., None].expand(-1, -1, states_BLD.shape[2])
    return states_BLD.gather(1, index).flatten(0, 1)


class MaskedTokenHead(nn.Module):
    """BERT's output layer: a dense layer, GELU, a norm, and the embedding with a bias of its own.

    dim: of the states; the embedding may be of another size, as ELECTRA's generator's is.
    """

    def __init__(self, dim: int, word: nn.Embedding) -> None:
        super().__init__()
        inner = word.embedding_dim
        self.transform = nn.Sequential(
            nn.Linear(dim, inner), nn.GELU(), nn.LayerNorm(inner, eps=1e-12)
        )
        self.bias = nn.Parameter(torch.zeros(word.num_embeddings))

    def forward(self, states_ND: Tensor, word_KE: Tensor) -> Tensor:
        """Give logits (N, K), N tokens and K ids; word_KE: the embedding, one row an id."""
        return F.linear(self.transform(states_ND), word_KE, self.bias)

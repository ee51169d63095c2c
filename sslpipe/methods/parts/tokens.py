"""What methods on tokens share: their group, and a loss that counts tokens."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ...batch import BatchSpec
from ...errors import ContractError
from ...process import group_ranks
from .checks import check_axes
from .heads import at_least_fp32

IGNORED = -100  # a target that is not asked for, as F.cross_entropy has it


def one_text_group(method: str, spec: BatchSpec) -> str:
    """The group of tokens of a batch.

    Raises:
        ContractError: there is none, or several.
    """
    groups = [name for name, view in spec.views.items() if view.axes == "L"]
    if len(groups) != 1:
        raise ContractError(
            f"{method} needs one group of tokens; this recipe has {len(groups)}. Write modality: "
            "text and views: {tokens: {ops: [Tokens: {length: 256}]}}"
        )
    return groups[0]


def mean_over_tokens(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
    """Average the cross entropy over the tokens of all ranks; a scalar, 0 if none is asked for.

    logits of any float type, targets int64, IGNORED: not asked for. A mean over the ranks' means
    would weigh a token by how few a rank has; here the mean over ranks of what is returned, which
    DDP takes, is the sum over all tokens by their number.
    """
    return mean_and_weight(logits_NK, targets_N)[0]


def mean_and_weight(logits_NK: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the tokens of all ranks, and what it weighs among accumulated batches."""
    check_axes("mean_over_tokens", logits_NK=logits_NK, targets_N=targets_N)
    with torch.autocast(logits_NK.device.type, enabled=False):
        total = F.cross_entropy(
            at_least_fp32(logits_NK), targets_N, ignore_index=IGNORED, reduction="sum"
        )
    weight = tokens_a_rank(targets_N != IGNORED)
    return total / at_least_one(weight), weight


def tokens_a_rank(asked: Tensor) -> Tensor:
    """How many are asked for on all ranks, by the number of ranks; a float32 scalar."""
    count, ranks = asked.sum().to(torch.float32), group_ranks().size
    if ranks > 1:
        dist.all_reduce(count)
    return count / ranks


def at_least_one(weight: Tensor) -> Tensor:
    """A divisor: the weight, or that of one token where there is none."""
    return weight.clamp_min(1.0 / group_ranks().size)


def asked_first(targets_BL: Tensor, most: int) -> Tensor:
    """Places of the tokens that are asked for, (B, most), in their order; then of others.

    A boolean index would find them, too, and wait for the device to tell how many there are.
    """
    asked_BL = (targets_BL != IGNORED).to(torch.uint8)
    return asked_BL.argsort(dim=1, descending=True, stable=True)[:, :most]


def states_at(states_BLD: Tensor, places_BS: Tensor) -> Tensor:
    """The states of chosen tokens, (B, S, D)."""
    return states_BLD.gather(1, places_BS[..., None].expand(-1, -1, states_BLD.shape[2]))

"""What methods on tokens share: their group, and a loss that counts tokens."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ...batch import BatchSpec
from ...errors import ContractError
from ...process import group_ranks

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


def mean_over_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    """Average the cross entropy over the tokens of all ranks; a scalar, 0 if none is asked for.

    logits (..., K), targets (...,) int64, IGNORED: not asked for. A mean over the ranks' means
    would weigh a token by how few a rank has; here the mean over ranks of what is returned, which
    DDP takes, is the sum over all tokens by their number.
    """
    total = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    count = (targets != IGNORED).sum().to(torch.float32)
    ranks = group_ranks().size
    if ranks > 1:
        dist.all_reduce(count)
        count = count / ranks
    return total / count.clamp_min(1.0 / ranks)

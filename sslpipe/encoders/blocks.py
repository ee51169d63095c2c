"""The repeated layers of a model: what is sharded one by one, and computed again in the backward.

They are found by what they are: the members of one class, of none of torch's, of a list of modules.
So ours, timm's and torchvision's are found alike, in encoders, their teachers and decoders:

    timm's ViT      model.blocks: a Block each
    GPT, BERT       h, encoder.layer: a GPTBlock, a BERTLayer each
    T5              block.N.layer: each layer of a block, since the blocks are torch's ModuleDicts
    a ResNet        the BasicBlocks or Bottlenecks of its stages
    MAE's decoder   as the ViT

What stands between them (embeddings, norms, heads) is no block.
"""

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

LISTS = (nn.ModuleList, nn.Sequential)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the innermost blocks within a module, in its order; each is called as a whole."""
    members = list(module.children())
    alike = isinstance(module, LISTS) and len({type(member) for member in members}) == 1
    for member in members:
        inner = list(blocks_of(member))
        foreign = not type(member).__module__.startswith("torch.nn.")
        if alike and foreign and not inner and any(True for _ in member.parameters()):
            yield member
        yield from inner


def can_recompute(block: nn.Module) -> bool:
    """Tell whether a block trains, and has no batch norm, whose statistics would move twice."""
    trains = any(parameter.requires_grad for parameter in block.parameters())
    return trains and not any(isinstance(part, _BatchNorm) for part in block.modules())


def recompute_blocks(module: nn.Module) -> None:
    """Have blocks keep their inputs only, and compute themselves again in backward.

    Names in state_dict stay, and so do gradients: dropout draws the same again (Chen et al. 2016,
    arXiv:1604.06174; torch's checkpoint, not reentrant). Costs a second forward pass of the blocks.
    """
    for block in filter(can_recompute, blocks_of(module)):
        # a bound method, and no closure: a deep copy of the block then computes itself
        again = partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = again

"""Accumulated batches: what each weighs in the loss of their step.

A loss that is a mean over tokens is, of a step, the mean over all its tokens: of all its batches
and ranks. Of one term it is divided at the end of the step, when their number is known. The
gradients of several terms, each a mean over other numbers, cannot be told apart at the end, so
their batches are counted first.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import torch
import torch.distributed as dist
from torch import Tensor

from ..batch import Batch
from ..methods import Method, Output


def step_batches(
    method: Method, batches: Iterator[Batch], count: int
) -> tuple[Iterable[Batch], Tensor | None]:
    """The batches of a step, and what the terms of its loss are divided by, (K,).

    None: there is one term or one batch; then no batch is taken before the one ahead of it is done.
    """
    taken = islice(batches, count)
    first = next(taken)
    weights = method.term_weights(first) if count > 1 else None
    if weights is None:
        return chain([first], taken), None
    whole = [first, *taken]
    counted = [weights, *(method.term_weights(batch) for batch in whole[1:])]
    totals = torch.stack([each for each in counted if each is not None]).sum(0)
    return whole, torch.where(totals > 0, totals, 1.0)


def loss_share(
    output: Output, outputs: Sequence[Output], count: int, totals: Tensor | None
) -> Tensor:
    """What of a batch's loss is sent backward, of `count` batches of the step; a scalar.

    Terms are multiplied by their weights and divided by those of the step. A loss of one term is
    multiplied by its weight; by what to divide is known at the end only, see `divide_by_weights`.
    Until then by a power of two near the first weight, for the range of fp16.
    """
    if totals is not None and output.terms is not None and output.weight is not None:
        return (output.terms * output.weight / totals).sum()
    if output.weight is None or count == 1:
        return output.loss / count
    return output.loss * (output.weight / reference_weight(outputs))


def divide_by_weights(method: Method, outputs: Sequence[Output]) -> None:
    """Make the gradients of accumulated batches those of the mean over all their tokens."""
    weights = [output.weight for output in outputs if output.weight is not None]
    if len(weights) < 2:
        return
    total = torch.stack(weights).sum() / reference_weight(outputs)
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    torch._foreach_div_(gradients, torch.where(total > 0, total, 1.0))


def reference_weight(outputs: Sequence[Output]) -> Tensor:
    """The power of two above the first weight, a scalar: it divides any weight without rounding."""
    first = outputs[0].weight
    assert first is not None
    weight = torch.where(first > 0, first, 1.0)
    return weight / torch.frexp(weight).mantissa


def detached(output: Output) -> Output:
    """The same output with losses that hold no graph and so no activations."""
    terms = None if output.terms is None else output.terms.detach()
    return Output(output.loss.detach(), output.metrics, output.weight, terms)


def read_metrics(outputs: Sequence[Output], world_size: int) -> dict[str, float]:
    """Average loss and metrics over the batches of a step and over the ranks; waits once.

    Batches weigh as their outputs say; of several terms each has its own weights, and metrics those
    of the first.
    """
    names = ["loss", *outputs[0].metrics]
    rows = [
        torch.stack([o.loss.detach().float(), *map(Tensor.float, o.metrics.values())])
        for o in outputs
    ]
    weights = [o.weight for o in outputs if o.weight is not None]
    terms = [o.terms.float() for o in outputs if o.terms is not None]
    table = torch.stack(rows)
    if terms:
        pairs = zip(torch.stack(terms).T, torch.stack(weights).T, strict=True)
        means = weighted(table, torch.stack(weights)[:, 0])
        means[0] = sum(weighted(term, weight) for term, weight in pairs)
    else:
        means = weighted(table, torch.stack(weights)) if weights else table.mean(dim=0)
    if world_size > 1:
        dist.all_reduce(means)
        means /= world_size
    return dict(zip(names, means.tolist(), strict=True))


def weighted(rows: Tensor, weights: Tensor) -> Tensor:
    """Average rows (N, ...) by their weights (N,); alike where all are 0."""
    shares = torch.where(weights.sum() > 0, weights, 1.0)
    return (shares / shares.sum()) @ rows

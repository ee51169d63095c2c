"""Every loss of pipelines/LOSSES.md as a user calls it: a function and random tensors alone."""

import importlib
import inspect

import pytest
import torch

from sslpipe.errors import ContractError
from sslpipe.methods import METHODS

from ..test_losses import CALL, LOSSES

# the axis letters of the table; 16 patches of 4 px, X = 2 of them hidden in each of 4 views
SIZES = {
    "A": 2, "B": 4, "C": 3, "D": 6, "G": 2, "H": 16, "K": 5, "L": 16, "M": 3, "N": 16, "P": 48,
    "Q": 8, "R": 4, "S": 3, "T": 2, "V": 3, "W": 16, "X": 8, "1": 1,
}  # fmt: skip
SETTINGS = {
    "temperature": 0.2, "student_temperature": 0.1, "teacher_temperature": 0.04, "patch_size": 4,
    "redundancy": 0.005, "global_views": 2, "scale": 10.0, "bias": -1.0,
}  # fmt: skip
FUNCTIONS = sorted(
    {
        (METHODS[method].__module__, function)
        for method, row in LOSSES.items()
        for function, _ in CALL.findall(row[0])
        if function
        != "data2vec_error"  # an error per vector, which data2vec_loss takes the mean of
    }
)
IDS = ("targets_N", "labels_BN", "ids_BS", "index_BHWN", "clusters_B")
PROBABILITIES = ("p_TBK", "p_XK", "codes_ABK", "weight_BHWN")


def tensor(name, generator):
    shape = [SIZES[axis] for axis in name.rpartition("_")[2]]
    if name in IDS:
        return torch.randint(SIZES["K"], shape, generator=generator)
    if name.startswith(("hidden", "real", "replaced")):
        return (torch.rand(*shape, generator=generator).argsort(-1).argsort(-1) < 2).bool()
    if name.startswith(("region", "hole")):
        return torch.ones(shape)
    x = torch.randn(*shape, generator=generator)
    if name.startswith("log_p"):
        x = x.log_softmax(-1)
    return x.softmax(-1) if name in PROBABILITIES else x.requires_grad_()


def arguments(function):
    """One for every parameter without a default."""
    generator = torch.Generator().manual_seed(0)
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    return {n: SETTINGS[n] if n in SETTINGS else tensor(n, generator) for n in needed}


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_a_loss_is_a_number_with_gradient(module, name):
    function = getattr(importlib.import_module(module), name)
    given = arguments(function)
    loss = function(**given)
    assert loss.shape == ()
    assert loss.isfinite()
    learns = [x for x in given.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    gradients = torch.autograd.grad(loss, learns, allow_unused=True)
    assert any(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    assert inspect.getdoc(function)


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_wrong_shapes_are_said_and_not_broadcast(module, name):
    function = getattr(importlib.import_module(module), name)
    given = arguments(function)
    tensors = [n for n in given if isinstance(given[n], torch.Tensor)]
    for wrong in tensors:
        said = (
            "hidden_BN" if name == "mae_loss" and wrong == "images_BCHW" else wrong
        )  # 5-D: a clip
        with pytest.raises(ContractError, match=rf"^\w+: {said} has shape .*; give"):
            function(**{**given, wrong: given[wrong][None]})
        axes = wrong.rpartition("_")[2]
        others = "".join(n.rpartition("_")[2] for n in tensors if n != wrong)
        for place, axis in enumerate(axes):
            if axis in others:
                short = given[wrong].narrow(place, 0, 1 if SIZES[axis] > 1 else 0)
                with pytest.raises(ContractError, match=rf"has shape .*, so {axis} = \d+, but \d+"):
                    function(**{**given, wrong: short})

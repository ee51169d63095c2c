"""Every format is loaded as its users load it, and its features compared, before it has a name."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.libraries import Blueprint, library
from ..errors import SslpipeError
from .trained import Trained

TOLERANCE = 1e-5  # of features, relative to the largest of them, or to 1
CLASSIFIER = ["fc.weight", "fc.bias"]
EXAMPLES = 3  # unlike the batch that an ONNX graph is made with


def check_in_timm(folder: Path, trained: Trained) -> None:
    """Have timm load the folder, and compare its features with those of the encoder.

    Raises:
        SslpipeError: the features differ, so this timm makes another model of the same name.
    """
    timm = library("timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    check_module(model, trained, f"timm {timm.__version__}")


def check_in_torchvision(weights: Path, trained: Trained, blueprint: Blueprint) -> None:
    """Load weights into torchvision's model by name; only its classifier may be missing.

    Raises:
        SslpipeError: the features differ, so this torchvision makes another model of that name.
    """
    torchvision = library("torchvision")
    model = torchvision.models.get_model(blueprint.name, weights=None)
    state = library("safetensors.torch").load_file(str(weights))
    found = model.load_state_dict(state, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (CLASSIFIER, []), found
    model.fc = nn.Identity()
    check_module(model, trained, f"torchvision {torchvision.__version__}")


def check_in_runtime(graph: Path, trained: Trained) -> bool:
    """Run an ONNX graph, if ONNX Runtime is installed; tell whether it is.

    Raises:
        SslpipeError: the features differ.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    images_BCHW = trained.examples(EXAMPLES)
    (features,) = session.run(["features"], {"images": images_BCHW.numpy()})
    what = f"ONNX Runtime {runtime.__version__}"
    check_alike(torch.from_numpy(features), trained.features(images_BCHW), what, trained.path)
    return True


@torch.no_grad()
def check_module(model: nn.Module, trained: Trained, what: str) -> None:
    """Compare the features of a library's model with those of the encoder.

    Raises:
        SslpipeError: they differ.
    """
    images_BCHW = trained.examples(EXAMPLES)
    check_alike(model.eval()(images_BCHW), trained.features(images_BCHW), what, trained.path)


def check_alike(theirs_BD: Tensor, ours_BD: Tensor, what: str, path: Path) -> None:
    """Compare features (B, D) of another library, `what`, with ours, by the largest difference.

    Raises:
        SslpipeError: they differ by more than rounding, or have another shape.
    """
    worst = float("inf")
    if theirs_BD.shape == ours_BD.shape:
        worst = float((theirs_BD - ours_BD).abs().max() / ours_BD.abs().max().clamp(min=1.0))
    if not worst <= TOLERANCE:
        raise SslpipeError(
            f"{path}: in {what} its features differ by {worst:.2g} of the largest; nothing was "
            "exported. Leave this format out (--format), and report it"
        )


def transformers_here() -> Any:
    """The library transformers, to compare with; None where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    return importlib.import_module("transformers")


def loaded(transformers: Any, folder: Path) -> Any:
    """The model of a folder, without a word about heads that nobody asks for."""
    says = transformers.logging
    level, bars = says.get_verbosity(), says.is_progress_bar_enabled()
    says.set_verbosity_error()
    says.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):  # a pooler that is not there is drawn
            return transformers.AutoModel.from_pretrained(folder).eval()
    finally:
        says.set_verbosity(level)
        if bars:
            says.enable_progress_bar()

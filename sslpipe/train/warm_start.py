"""`train --from`: the encoder starts with weights that somebody trained before.

Names and shapes must be those of the recipe's backbone, exactly; a classifier is left out, and the
learned positions of a ViT are interpolated if only their grid is another. Weights of images are
inflated for an encoder of clips. What the weights were is
kept in every checkpoint of the run, so that a resumed run needs no `--from`.
"""

import math
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.inflation import inflate, over_time
from ..encoders.libraries import library
from ..encoders.library_encoders import LibraryEncoder
from ..encoders.pretrained import pretrained
from ..errors import StateError
from ..methods import Method
from .checkpoint import check_crcs, check_format, weights_digest
from .text_start import fit_text, text_config, text_weights
from .world import keyed

CLASSIFIERS = ("fc.", "head.", "heads.", "classifier.", "head_dist.")
WRAPPERS = ("module.", "timm_model.", "model.")  # what DDP, transformers and we put before names
LIBRARIES = ("timm:", "torchvision:")
IN_FOLDERS = ("last.pt", "model.safetensors", "pytorch_model.bin")  # of ours, of transformers
COUNTER = "num_batches_tracked"  # of batch norms; old files have none, and none is read
SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Weights that an encoder starts with, under the names of its library."""

    source: str  # as the user gave it
    tensors: Mapping[str, Tensor]
    digest: str  # of names, shapes and values: "b2:..."
    config: Mapping[str, Any] | None = None  # of a text model as transformers writes it
    left_out: str = ""  # what else was there, for the line that is said

    @property
    def record(self) -> dict[str, str]:
        """What a checkpoint keeps of it."""
        return {"source": self.source, "digest": self.digest}


def read_weights(source: str | Path) -> WarmStart:
    """Read weights onto the CPU.

    `source`: a checkpoint or the folder of a run (its last.pt: what the method keeps), a folder
    that `sslpipe export` wrote, or transformers of a GPT-2, BERT, ELECTRA or T5, `timm:NAME`,
    `torchvision:NAME`, or a file with a state dict (.safetensors, or .pth of tensors alone).

    Raises:
        StateError: there is nothing such, it is damaged, or holds no finite weights.
        ExtraError: the library is not installed.
        SslpipeError: timm or torchvision has no such weights here.
    """
    source = str(source)
    config, left = text_config(Path(source)), ""
    tensors = bare(of_library(source) if is_of_library(source) else of_path(Path(source)))
    if config is not None:
        tensors, left = text_weights(config, tensors)
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise StateError(f"{source}: numbers of {listed(bad)} are not finite; take other weights")
    return WarmStart(source, tensors, weights_digest(tensors), config, left)


def of_library(source: str) -> Mapping[str, Any]:
    """The weights that timm or torchvision has under a name."""
    encoder, _ = pretrained(source)
    return encoder.state_dict()


def is_of_library(source: str | Path) -> bool:
    """Tell whether a source is a model of timm or torchvision, which may have to be fetched."""
    return str(source).startswith(LIBRARIES)


def check_library(source: str | Path, encoder: nn.Module) -> None:
    """Refuse a library's model that the encoder is not, before its weights are fetched.

    Raises:
        StateError: names or shapes are not those of the encoder.
        SslpipeError: the library has no such model.
        ExtraError: it is not installed.
    """
    with keyed("init", seed=0):
        twin, _ = pretrained(str(source), weights=False)
    fill(encoder, WarmStart(str(source), bare(twin.state_dict()), ""))


def of_path(path: Path) -> Mapping[str, Any]:
    """The weights of a file, or of the one that counts in a folder.

    Raises:
        StateError: there is no such file, or it holds no weights.
    """
    if path.is_dir():
        found = [path / name for name in IN_FOLDERS if (path / name).is_file()]
        if not found:
            raise StateError(
                f"{path}: holds neither last.pt nor model.safetensors; name a run, an export, or "
                "a file with weights"
            )
        path = found[0]
    if not path.is_file():
        raise StateError(
            f"{path}: there are no weights; name a checkpoint, an exported folder, a file with a "
            "state dict, timm:NAME or torchvision:NAME"
        )
    return of_safetensors(path) if path.suffix == ".safetensors" else of_torch(path)


def of_safetensors(path: Path) -> Mapping[str, Tensor]:
    """All tensors of a file.

    Raises:
        StateError: it is damaged.
    """
    damaged = library("safetensors").SafetensorError
    try:
        tensors: Mapping[str, Tensor] = library("safetensors.torch").load_file(str(path))
    except PermissionError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror}); mend its rights") from error
    except (damaged, OSError) as error:
        raise StateError(
            f"{path}: is no safetensors file, or damaged ({error}); name another, or copy it again"
        ) from error
    return tensors


def of_torch(path: Path) -> Mapping[str, Any]:
    """The encoder of a checkpoint of ours, or a bare state dict.

    Raises:
        StateError: it is damaged, holds code, or no state dict.
    """
    try:
        if zipfile.is_zipfile(path):  # not so before torch 1.6
            check_crcs(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to load it unsafely
        raise StateError(
            f"{path}: is no file of torch's, or holds more than tensors and plain data; save the "
            "state dict alone"
        ) from error
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        why = str(error).partition(". ")[0]  # what follows advises to load it unsafely, too
        raise StateError(
            f"{path}: damaged, or holds no weights ({why}); name another file"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("format"), int):
        return check_format(path, content).encoder
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        held = f"a dict of {listed(content)}" if isinstance(content, dict) else "something else"
        raise StateError(f"{path}: is no state dict but {held}; save the one of the encoder alone")
    return content


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the library has them, without what wrappers put before all of them."""
    for prefix in WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def fill(encoder: nn.Module, start: WarmStart) -> str:
    """Put the weights into an encoder; say in a line what was done.

    Raises:
        StateError: names or shapes are not those of the encoder.
    """
    module = encoder.model if isinstance(encoder, LibraryEncoder) else encoder
    wanted: dict[str, Tensor] = module.state_dict()
    given = dict(start.tensors)
    cut = "" if start.config is None else fit_text(start.source, start.config, given, encoder)
    classifier = [n for n in given if n not in wanted and n.startswith(CLASSIFIERS)]
    for name in classifier:
        del given[name]
    inflated = inflate(given, wanted)
    check_names(start.source, wanted, given)
    grids = fit_positions(module, wanted, given)
    shapes = [
        f"{name} {list(tensor.shape)}, not {list(wanted[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != wanted[name].shape
    ]
    if shapes:
        raise StateError(
            f"{start.source}: weights of another shape than the backbone's: {listed(shapes)}; set "
            "train.backbone to what they were trained with"
        )
    module.load_state_dict(wanted | given)
    left = f"; left out {listed(classifier)}" if classifier else start.left_out
    done = f"{left}{inflated}{grids}{cut}"
    return f"starts from {start.source}: {len(given)} tensors, {start.digest}{done}"


def check_names(source: str, wanted: Iterable[str], given: Iterable[str]) -> None:
    """Refuse names that one side does not have.

    Raises:
        StateError: there are such names.
    """
    wanted, given = list(wanted), {*given}
    missing = [name for name in wanted if name not in given and not name.endswith(COUNTER)]
    unexpected = sorted(given.difference(wanted))
    words = [f"lacks {listed(missing)}"] if missing else []
    words += [f"has {listed(unexpected)}, which the backbone has not"] if unexpected else []
    if words:
        raise StateError(
            f"{source}: {' and '.join(words)}; set train.backbone to what it was trained with"
        )


def fit_positions(module: Any, wanted: Mapping[str, Tensor], given: dict[str, Tensor]) -> str:
    """Interpolate a ViT's positions to another grid, in place, by timm; say so if it was done."""
    new, old = wanted.get("pos_embed"), given.get("pos_embed")
    if new is None or old is None or new.shape == old.shape or (new.ndim, old.ndim) != (3, 3):
        return ""  # what does not fit is refused by its shape
    others, (*times, rows, columns) = module.num_prefix_tokens, module.patch_embed.grid_size
    side = math.isqrt(max(old.shape[1] - others, 0))
    if side * side + others != old.shape[1] or old.shape[2] != new.shape[2]:
        return ""
    given["pos_embed"] = library("timm.layers").resample_abs_pos_embed(
        old, new_size=[rows, columns], old_size=[side, side], num_prefix_tokens=others
    )
    if times:
        given["pos_embed"] = over_time(given["pos_embed"], others, module, times[0])
        return f"; positions of {side} x {side} patches for {times[0]} x {rows} x {columns}"
    return f"; positions of {side} x {side} patches interpolated to {rows} x {columns}"


def fill_method(method: Method, encoder_state: Mapping[str, Tensor]) -> None:
    """Put the weights into all encoders that a method holds, after it was built.

    Teachers are copies of an encoder that was filled before, but a method may draw parts anew:
    MoCo v3 the patch projection that it freezes. With a warm start the frozen one is the warm one.
    """
    for _, place in method.encoders:
        part = method.get_submodule(place)
        if part.state_dict().keys() == encoder_state.keys():
            part.load_state_dict(encoder_state)


def check_same(path: Path, kept: Mapping[str, str] | None, asked: Mapping[str, str] | None) -> None:
    """Refuse to resume a run with other weights than it began with; None asks for nothing.

    Raises:
        StateError: the weights are not the same.
    """
    if asked is None or (kept is not None and kept["digest"] == asked["digest"]):
        return
    began = f"{kept['source']} ({kept['digest']})" if kept else "random weights"
    raise StateError(
        f"{path}: began from {began}, not from {asked['source']} ({asked['digest']}); resume "
        "without --from, or start a new run in another folder"
    )


def listed(names: Iterable[str]) -> str:
    """List the first few names, and say how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

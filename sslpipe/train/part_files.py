"""Tensors of a sharded run in a folder, which all ranks write and any number of them read.

It is a checkpoint of torch.distributed.checkpoint. Its index is a pickle; ours is read by an
unpickler that knows the classes of such an index and no others, so nothing is executed.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ..errors import StateError

INDEX = ".metadata"
MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
NAMES = {
    ("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("pathlib._local", "PosixPath"),
}  # fmt: skip


class IndexUnpickler(pickle.Unpickler):
    """Reads the index of such a folder, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Find what an index may hold: its own classes, sizes, types of tensors, paths.

        Raises:
            UnpicklingError: anything else.
        """
        own = module in MODULES and "." not in name and name.lstrip("_")[:1].isupper()
        kind = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if own or kind or (module, name) in NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} in an index of tensors")


class PartReader(FileSystemReader):
    """torch's reader of files, with our reader of the index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index by IndexUnpickler, so that a foreign file runs no code."""
        with (Path(self.path) / INDEX).open("rb") as file:
            metadata: Metadata = IndexUnpickler(file).load()
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name, of each DTensor the parts of this rank; all ranks must call it."""
    save(dict(tensors), storage_writer=FileSystemWriter(folder, overwrite=True))


def stored_sizes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shapes and types of the tensors in a folder.

    Raises:
        StateError: it is missing or damaged.
    """
    try:
        index = PartReader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # pickle and torch raise a dozen kinds on damaged bytes
        raise StateError(
            f"{folder}: the tensors of a sharded run cannot be read ({error}); keep this folder "
            "beside its last.pt, or resume from another checkpoint"
        ) from error
    return {
        name: (entry.size, entry.properties.dtype)
        for name, entry in index.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_parts(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors and DTensors by name, each process for itself.

    Raises:
        StateError: it is missing or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(dict(targets), storage_reader=PartReader(folder), no_dist=True)
    except Exception as error:
        raise StateError(
            f"{folder}: the tensors of a sharded run cannot be read ({error}); restore the folder, "
            "or resume from another checkpoint"
        ) from error


def read_all_parts(folder: Path) -> dict[str, Tensor]:
    """Read all tensors onto the CPU, in one process.

    Raises:
        StateError: it is missing or damaged.
    """
    found = {
        name: torch.empty(size, dtype=dtype) for name, (size, dtype) in stored_sizes(folder).items()
    }
    read_parts(folder, found)
    return found

"""Data at rest: tar shards, their indexes and manifest. The format: shards/README.md."""

from .exclude import exclude_rows
from .index import Index, read_index, write_index
from .inputs.found import Columns
from .manifest import Manifest, Shard, open_manifest, read_manifest
from .pack import Packed, PackReport, pack
from .scan import index_tar
from .verify import Problem, verify

__all__ = [
    "Columns",
    "Index",
    "Manifest",
    "PackReport",
    "Packed",
    "Problem",
    "Shard",
    "exclude_rows",
    "index_tar",
    "open_manifest",
    "pack",
    "read_index",
    "read_manifest",
    "verify",
    "write_index",
]

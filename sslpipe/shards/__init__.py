"""Data at rest: tar shards, their indexes and manifest. The format: shards/README.md."""

from .estimate import estimate
from .exclude import exclude_rows
from .index import Index, read_index, write_index
from .inputs.found import Columns, parse_columns
from .manifest import Manifest, Shard, open_manifest, read_manifest
from .pack import pack
from .pools import Processes, open_pool, open_threads
from .report import Duplicate, Estimate, Packed, PackReport
from .scan import index_tar
from .verify import Problem, verify

__all__ = [
    "Columns",
    "Duplicate",
    "Estimate",
    "Index",
    "Manifest",
    "PackReport",
    "Packed",
    "Problem",
    "Processes",
    "Shard",
    "estimate",
    "exclude_rows",
    "index_tar",
    "open_manifest",
    "open_pool",
    "open_threads",
    "pack",
    "parse_columns",
    "read_index",
    "read_manifest",
    "verify",
    "write_index",
]

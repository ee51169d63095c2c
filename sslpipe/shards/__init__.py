"""Data at rest: tar shards, their indexes and manifest. The format: shards/README.md."""

from .codec import Codec
from .exclude import exclude_rows
from .index import Index, read_index, write_index
from .make.inputs.found import Columns, parse_columns
from .make.pack import estimate, pack
from .make.plan import PackSettings
from .make.pools import Processes, open_pool, open_threads
from .make.report import Duplicate, Estimate, PackProgress, PackReport
from .manifest import Manifest, Shard, open_manifest, read_manifest
from .scan import Rules, index_tar
from .verify import Problem, verify

__all__ = [
    "Codec",
    "Columns",
    "Duplicate",
    "Estimate",
    "Index",
    "Manifest",
    "PackProgress",
    "PackReport",
    "PackSettings",
    "Problem",
    "Processes",
    "Rules",
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

"""Data at rest: tar shards, their indexes and manifest. The format: shards/README.md.

Names are imported when first used: a worker reads shards without what packs and checks them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from .verification import Problem, verify

WHERE = {
    "Codec": "codec",
    "Columns": "make.inputs.found",
    "Duplicate": "make.report",
    "Estimate": "make.report",
    "Index": "index",
    "Manifest": "manifest",
    "PackProgress": "make.report",
    "PackReport": "make.report",
    "PackSettings": "make.plan",
    "Problem": "verification",
    "Processes": "make.pools",
    "Rules": "scan",
    "Shard": "manifest",
    "estimate": "make.pack",
    "exclude_rows": "exclude",
    "index_tar": "scan",
    "open_manifest": "manifest",
    "open_pool": "make.pools",
    "open_threads": "make.pools",
    "pack": "make.pack",
    "parse_columns": "make.inputs.found",
    "read_index": "index",
    "read_manifest": "manifest",
    "verify": "verification",
    "write_index": "index",
}

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


def __getattr__(name: str) -> Any:
    if name in WHERE:
        return getattr(import_module(f".{WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""One sample of a store at a time, in this process: what the tests of bytes and places need."""

from sslpipe.stream.reader import read_sample
from sslpipe.stream.records import wanted


class Reader:
    """`read(shard, row)` -> Sample; `members`: extensions that are read beside the payload."""

    def __init__(self, store, members=()):
        self._store, self._members = store, members

    def read(self, shard, row):
        tar = self._store.open(shard)
        file = self._store.name(shard)
        return read_sample(tar, wanted(tar.index, row, file=file, members=self._members))

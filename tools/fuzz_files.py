"""Everything but images for tools/fuzz.py: tars, indexes, manifests, tables, recipes, records."""

import csv
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from fuzz_images import saved
from fuzz_mutations import MUTATIONS, Case, Generator, case_of

from sslpipe.errors import SslpipeError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.pipeline import load
from sslpipe.recipe import recipes
from sslpipe.shards import (
    PackSettings,
    Rules,
    exclude_rows,
    index_tar,
    open_manifest,
    pack,
    read_manifest,
    verify,
)
from sslpipe.shards.index import file_sha256, index_path, parse_index
from sslpipe.shards.make.inputs.found import UNSAFE
from sslpipe.shards.make.journal import FOLDER, Journal
from sslpipe.shards.make.listing import list_inputs
from sslpipe.shards.read.open_tars import LocalTar
from sslpipe.shards.read.store import open_store
from sslpipe.shards.scan import whole_number
from sslpipe.stream.quarantine import Quarantine
from sslpipe.stream.reader import Sample, read_sample
from sslpipe.stream.records import wanted
from sslpipe.train import load_encoder

CODEC = ImageCodec()
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
ODD = (b"nan", b"-1", b"1e999", b"null", b"[]", b"{}", b"2.0", b"99999999999999999999999", b'"',
       b"'", b"\0", b"\xff", b"\xed\xa0\x80", b"[" * 5000, b"{a: " * 500, b"&a [*a]", b"!!int x",
       b"2001-99-99", b"!!binary x", b"0.1", b"true", b"-", b"\n", b",", b"x" * 150_000, b"*",
       b"../..", b"0", b"1" * 5000, b": ", b"{1: 2}", b"? [a]\n: b", b"\xe2\x80\xa8")  # fmt: skip


def token(data: bytes, other: bytes, rng: Generator) -> bytes:
    """Another word in place of one: numbers, brackets and marks that mean something."""
    words = list(re.finditer(rb"[\w.+-]+", data))
    if not words:
        return data
    word = words[int(rng.integers(len(words)))]
    return data[: word.start()] + ODD[int(rng.integers(len(ODD)))] + data[word.end() :]


def swap_lines(data: bytes, other: bytes, rng: Generator) -> bytes:
    """Two lines change places."""
    lines = data.split(b"\n")
    one, two = rng.integers(0, len(lines), 2)
    lines[one], lines[two] = lines[two], lines[one]
    return b"\n".join(lines)


TEXTS = {**MUTATIONS, "token": token, "word": token, "swap_lines": swap_lines}


def tar_of(members: Sequence[tuple[str, bytes]], kind: str) -> bytes:
    """A tar in memory."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=FORMATS[kind]) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


class Files:
    """Whole files of every kind in a folder, and what must hold of spoiled ones.

    A kind is a method `check_KIND(case) -> findings`; `seeds[KIND]` are what its cases begin with.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = folder / "photos"
        for number in range(12):
            path = self.photos / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(saved("RGB", "JPEG", quality=30 + number))
        self.settings = PackSettings(codec=CODEC, name="set", shard_samples=6, resize=32)
        pack(self.photos, folder / "set", self.settings)
        self.tars = sorted((folder / "set").glob("*.tar"))
        self.payloads = [self.payload_bytes(tar) for tar in self.tars]
        self.seeds: dict[str, list[tuple[str, bytes]]] = {
            "tar": self.foreign_tars(),
            "set": self.files_of_the_set(),
            "table": self.tables(),
            "label": [("cls", b"12"), ("cls", b" 3.0\n"), ("json", b'{"label": 4, "a": [1, {}]}')],
            "recipe": [(name, path.read_bytes()) for name, path in recipes().items()],
            "record": self.records(),
        }

    def case(self, kind: str, seed: int, number: int) -> Case:
        """Case `number` of a kind: the same bytes for ever."""
        known = MUTATIONS if kind == "tar" else TEXTS
        return case_of(self.seeds[kind], seed, number, known=known)

    def check(self, kind: str, case: Case) -> list[str]:
        """Everything that is wrong with how a case is taken or refused."""
        check: Callable[[Case], list[str]] = getattr(self, f"check_{kind}")
        try:
            return check(case)
        except SslpipeError:
            return []
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]

    def payload_bytes(self, tar: Path) -> list[bytes]:
        """The payloads of a packed tar."""
        with tar.open("rb") as file:
            index = parse_index(index_path(tar).read_bytes(), str(tar))
            return [read(file.fileno(), index, row, tar.name).data for row in range(len(index))]

    def foreign_tars(self) -> list[tuple[str, bytes]]:
        photo = saved("RGB", "JPEG")
        deep = "long/" * 40 + "name"
        members = [
            ("a/0.jpg", photo), ("a/0.cls", b"3"), ("a/0.json", b'{"label": 3, "x": "y"}'),
            ("b.1.jpg", photo), ("c.txt", b"words"), ("c.png", saved("P", "PNG")),
        ]  # fmt: skip
        tars = [(kind, tar_of(members, kind)) for kind in FORMATS]
        return tars + [(f"{k} deep", tar_of([(f"{deep}.jpg", photo)], k)) for k in ("gnu", "pax")]

    def files_of_the_set(self) -> list[tuple[str, bytes]]:
        names = [path for tar in self.tars for path in (tar, index_path(tar))]
        names += [self.folder / "set/manifest.json"] * 2
        return [(path.name, path.read_bytes()) for path in names]

    def tables(self) -> list[tuple[str, bytes]]:
        from pyarrow import Table, parquet

        rows = [(str(path.relative_to(self.folder)), path.parent.name, str(number % 3), "a, b")
                for number, path in enumerate(sorted(self.photos.rglob("*.jpg")))]  # fmt: skip
        found = [("list.txt", "\n".join(row[0] for row in rows).encode())]
        for name, delimiter, header in (
            ("names.csv", ",", "path,label,,caption"),
            ("numbers.csv", ",", "path,dir,label,caption"),
            ("names.tsv", "\t", "path\tlabel\tid\tcaption"),
        ):
            text = io.StringIO()
            csv.writer(text, delimiter=delimiter).writerows(rows)
            found.append((name, f"{header}\n{text.getvalue()}".encode()))
        file = io.BytesIO()
        columns = dict(zip(("path", "class", "label", "caption"), zip(*rows, strict=True),
                           strict=True))  # fmt: skip
        parquet.write_table(Table.from_pydict(columns), file)
        return [*found, ("t.parquet", file.getvalue())]

    def records(self) -> list[tuple[str, bytes]]:
        """What a run leaves behind and reads again: checkpoint, quarantine, a packing's journal."""
        view = {"group": "g", "count": 2, "axes": "CHW", "shape": (3, 8, 8), "vocabulary": None}
        model = {
            "format": 2, "recipe": recipes()["simclr_cifar"].read_text(), "fingerprint": "b2:0",
            "view": view, "step": 1, "stream": {}, "encoder": {}, "optimizer": {}, "scaler": {},
            "method": {"w": torch.ones(3)}, "torch": "2",
        }  # fmt: skip
        file = io.BytesIO()
        torch.save(model, file)
        manifest = read_manifest(self.folder / "set")
        line = {"manifest": manifest.fingerprint, "shard": self.tars[0].name, "row": 1,
                "uid": 5, "key": "class0/0", "reason": "bad", "epoch": 0, "step": 3}  # fmt: skip
        found = [("last.pt", file.getvalue()), ("log", (json.dumps(line) + "\n").encode() * 3)]
        self.unfinished = self.folder / "unfinished"
        kept = Journal.remove
        try:
            Journal.remove = lambda journal: None  # type: ignore[method-assign]
            pack(self.photos, self.unfinished, self.settings)
        finally:
            Journal.remove = kept  # type: ignore[method-assign]
        (self.unfinished / "manifest.json").unlink()
        paths = sorted((self.unfinished / FOLDER).iterdir())
        return found + [(f"journal {path.name}", path.read_bytes()) for path in paths]

    def check_tar(self, case: Case) -> list[str]:
        """A tar that is indexed can be read by its index, and gives what was indexed."""
        path = self.folder / "x.tar"
        path.write_bytes(case.data)
        found = []
        for look in ("header", "decode"):
            index = index_tar(path, Rules(CODEC, look))
            with path.open("rb") as file:
                for row in range(len(index)):
                    try:
                        read(file.fileno(), index, row, "x.tar")
                    except SslpipeError as error:
                        found.append(f"indexed, but cannot be read: {error}")
        return found

    def check_set(self, case: Case) -> list[str]:
        """Of a set with one spoiled file every sample is what it was, or is refused."""
        folder = self.folder / "spoiled"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / "set", folder)
        (folder / case.seed).write_bytes(case.data)
        found = [*self.read_set(folder, case, same=case.seed != "manifest.json")]
        if case.seed.endswith(".idx"):
            self.agree(folder, case)
            found += self.read_set(folder, case, same=False)
        return found

    def agree(self, folder: Path, case: Case) -> None:
        """Make a manifest that knows the spoiled index, as the writer of a bad one would have."""
        text = (folder / "manifest.json").read_text()
        old = file_sha256(self.folder / "set" / case.seed)
        (folder / "manifest.json").write_text(text.replace(old, file_sha256(folder / case.seed)))

    def read_set(self, folder: Path, case: Case, *, same: bool) -> list[str]:
        found = []
        try:
            problems = verify(read_manifest(folder), codec=CODEC)
            if same and case.data != case.whole and not problems:
                found.append("verify finds nothing")
            store = open_store(open_manifest(folder))
        except SslpipeError:
            return found
        for shard, name in enumerate(tar.name for tar in self.tars):
            try:
                tar = store.open(shard)
            except (SslpipeError, IndexError):
                continue
            for row in range(len(tar.index)):
                try:
                    data = read_sample(tar, wanted(tar.index, row, file=name, members=())).data
                except SslpipeError:
                    continue
                if same and data != self.payloads[shard][row]:
                    found.append(f"{name} {row}: other bytes without an error")
        return found

    def check_table(self, case: Case) -> list[str]:
        """Keys are plain and unique, class numbers are those of classes."""
        path = self.folder / case.seed
        path.write_bytes(case.data)
        out = self.folder / "out"
        listing = list_inputs([path], out=out, extensions=CODEC.extensions)
        keys = [source.key for source in listing.sources]
        found = [f"key {key!r}" for key in keys if UNSAFE.search(key) or ".." in key]
        if len(set(keys)) < len(keys):
            found.append("keys are not unique")
        if not all(-1 <= source.label < len(listing.classes) for source in listing.sources):
            found.append("labels of no class")
        return found

    def check_label(self, case: Case) -> list[str]:
        """A label is that of the file, or none and told."""
        members = [("a.jpg", saved("RGB", "JPEG")), (f"a.{case.seed}", case.data)]
        path = self.folder / "x.tar"
        path.write_bytes(tar_of(members, "gnu"))
        told: list[str] = []
        index = index_tar(path, Rules(CODEC), lambda key, why: told.append(why))
        listing = list_inputs([path], out=self.folder / "o", extensions=CODEC.extensions)
        if len(index) != 1 or len(listing.sources) != 1:
            return ["the sample is lost with its label"]
        text = case.data.decode("utf-8", "replace").strip()
        silent = case.seed == "cls" and index.sample(0).label < 0 and not told
        lost = silent and text and whole_number(text) != -1
        return ["no label, and nothing said"] if lost else []

    def check_recipe(self, case: Case) -> list[str]:
        """A recipe that is taken can be built, or says why not."""
        path = self.folder / "recipe.yaml"
        path.write_bytes(case.data)
        with load(path, shards=self.folder / "set", device="cpu", rank=0, world_size=1) as pipe:
            len(pipe)
        return []

    def check_record(self, case: Case) -> list[str]:
        """What a run left behind is read, or refused."""
        if case.seed.startswith("journal"):
            return self.check_journal(case)
        path = self.folder / case.seed
        path.write_bytes(case.data)
        if case.seed == "last.pt":
            load_encoder(path)
            return []
        folder = self.folder / "logged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / "set", folder)
        for work in (
            partial(exclude_rows, read_manifest(folder), logs=[path]),
            partial(Quarantine, path, max_fraction=0.1),
        ):
            try:
                work()
            except SslpipeError:
                continue
        return []

    def check_journal(self, case: Case) -> list[str]:
        """A packing goes on to the same bytes, or refuses."""
        folder = self.folder / "going on"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.unfinished, folder)
        (folder / FOLDER / case.seed.split()[1]).write_bytes(case.data)
        pack(self.photos, folder, self.settings)
        made = [(folder / tar.name).read_bytes() for tar in self.tars]
        same = made == [tar.read_bytes() for tar in self.tars]
        read_manifest(folder)
        return [] if same else ["goes on to other bytes"]


def read(file: int, index: object, row: int, name: str) -> Sample:
    """A sample of an open tar, checked."""
    import os

    tar = LocalTar(os.dup(file), index)  # type: ignore[arg-type]
    return read_sample(tar, wanted(tar.index, row, file=name, members=tar.index.extensions))

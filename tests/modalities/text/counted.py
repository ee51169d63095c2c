"""What the tests of counted sets share: random words, a set with a BPE of its own, its counts."""

from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.counting import count_tokens
from sslpipe.modalities.text.training import TrainSettings, train_vocabulary
from sslpipe.shards import PackSettings, pack, read_manifest
from sslpipe.shards.make.pools import open_threads


def random_words(rng, count=60):
    """So many words of 2 to 5 letters."""
    return ["".join(rng.choice(list("aeinrst"), rng.integers(2, 6))) for _ in range(count)]


def pack_with_bpe(texts, tmp_path_factory):
    """Pack texts into shards of 20, with tokenizer.json, a BPE of 300 tokens that they trained."""
    folder, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("packed") / "set"
    for number, text in enumerate(texts):
        (folder / f"d{number:03d}.txt").write_text(text)
    pack(folder, out, PackSettings(codec=TextCodec(), shard_samples=20))
    write_bpe(out, "tokenizer.json", 300)
    return out


def write_bpe(folder, file, size):
    """Train a BPE on a set, and write it there."""
    made = train_vocabulary(read_manifest(folder), TrainSettings(kind="bpe", size=size))
    (folder / file).write_bytes(made.data)


def count(folder, file="tokenizer.json", **settings):
    """Count the tokens of a set by a file of its folder, in this process."""
    with open_threads(1) as pool:
        return count_tokens(folder, str(folder / file), pool=pool, **settings)

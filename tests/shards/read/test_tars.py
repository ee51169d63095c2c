"""From what a user types to tars: pytest tests/shards/read/test_tars.py"""

import pytest

from sslpipe.errors import ShardError
from sslpipe.shards.read.tars import find_tars, plain_names


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("nowhere.tar", "no such tar"),
        ("y*.tar", "no such tar"),
        ("{0..3.tar", "unbalanced braces"),
        ("x.tar.gz", "is compressed, .* unpack it"),
        ("x.tgz", "is compressed"),
        ("{x,x}.tar", "is named 2 times"),
        ("nothing://x.tar", "Protocol not known"),
    ],
)
def test_wrong_urls(tmp_path, url, match):
    for name in ("x.tar", "x.tar.gz", "x.tgz"):
        (tmp_path / name).touch()
    with pytest.raises(ShardError, match=match):
        find_tars([url if "://" in url else str(tmp_path / url)])


def test_names_are_plain_and_unique():
    urls = ["s3://x/a/0.tar", "s3://x/b/0.tar", "s3://y/b/0.tar", "http://h/1.tar?v=2", "/l/2#.tar"]
    assert plain_names(urls) == ["a__0.tar", "x__b__0.tar", "y__b__0.tar", "1.tar", "2#.tar"]


def test_globs_folders_and_braces_are_sorted_and_keep_their_order(tmp_path):
    for name in ("b/1", "b/0", "a[1]/2", "a[1]/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.tar").write_bytes(b"12345")
    (tmp_path / "b" / "note.txt").touch()

    def found(*urls):
        tars = find_tars(str(tmp_path / url) for url in urls)
        assert {tar.bytes for tar in tars} == {5}
        assert all(tar.modified > 0 for tar in tars)
        return [tar.url.removeprefix(f"{tmp_path}/") for tar in tars]

    assert found("b", "a[1]") == ["b/0.tar", "b/1.tar", "a[1]/2.tar", "a[1]/x.tar"]
    assert found("b/*.tar", "a[1]/x.tar") == ["b/0.tar", "b/1.tar", "a[1]/x.tar"]
    assert found("b/{1..0}.tar") == ["b/1.tar", "b/0.tar"]
    assert found("b/[!0].tar") == ["b/1.tar"]
    with pytest.raises(ShardError, match="no tars given"):
        find_tars([])

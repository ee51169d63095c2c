"""What `eval` prints below a table: how each number came about."""

from sslpipe.cli.evaluation import footnotes
from sslpipe.evaluate.results import Measure


def test_what_all_measures_share_is_said_once_and_the_rest_behind_their_names():
    measures = [
        Measure("NMI", 0.1, "k-means, seed 0; judged by 72; mean of entropies"),
        Measure("ARI", 0.2, "k-means, seed 0; judged by 72; pairs"),
        Measure("AMI", 0.3, "k-means, seed 0; judged by 72; mean of entropies"),
    ]
    assert footnotes(measures) == [
        "NMI, AMI: mean of entropies", "ARI: pairs", "all: k-means, seed 0; judged by 72",
    ]  # fmt: skip
    assert footnotes(measures[:1]) == ["k-means, seed 0; judged by 72; mean of entropies"]
    apart = [Measure("a", 1, "one way"), Measure("b", 2, "another")]
    assert footnotes(apart) == ["a: one way", "b: another"]

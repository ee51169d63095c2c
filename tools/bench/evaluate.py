"""What the protocols of `eval` cost once features are there, beside scikit-learn's own calls.

    python tools/bench/evaluate.py [--samples 10000] [--width 512] [--classes 10] [--large 50000]

Features are clusters of noise. Naive: brute-force k-NN, a grid search of logistic regressions by
cross-validation and k-means, as one would write them with scikit-learn. Then k-NN of --large
against as many, with the most memory that it took; 0 leaves it out.
"""

import argparse
import resource
import time
import warnings
from collections.abc import Callable

import torch
from provenance import row
from rich.console import Console
from rich.table import Table

from sslpipe.evaluate import Features
from sslpipe.evaluate.knn import neighbours
from sslpipe.evaluate.protocols import FROZEN, QUICK

GRID = [10.0**power for power in range(-4, 4)]


def clusters(samples: int, width: int, classes: int, *, seed: int) -> Features:
    """Unit clusters about random centres, so near each other that no protocol is perfect."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(classes, (samples,), generator=generator)
    noise = torch.randn(samples, width, generator=generator)
    uids = torch.arange(samples) + seed * samples
    return Features(0.1 * centres[labels] + noise, labels, uids)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mb() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def naive(train: Features, test: Features) -> dict[str, float]:
    """Seconds of what one would write with scikit-learn."""
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler, normalize

    (x, y), (queries, truth) = train.arrays(), test.arrays()
    near = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights="distance")
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    search = GridSearchCV(regression, {"logisticregression__C": GRID}, cv=5)
    means = KMeans(int(y.max()) + 1, n_init=10, random_state=0)
    return {
        "knn": timed(lambda: near.fit(x, y).score(queries, truth)),
        "linear": timed(lambda: search.fit(x, y).score(queries, truth)),
        "clustering": timed(lambda: means.fit(normalize(x))),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--samples", type=int, default=10_000)
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--classes", type=int, default=10)
    options.add_argument("--large", type=int, default=50_000)
    chosen = options.parse_args()
    warnings.simplefilter("ignore")  # of fits that do not converge
    train = clusters(chosen.samples, chosen.width, chosen.classes, seed=1)
    test = clusters(chosen.samples // 5, chosen.width, chosen.classes, seed=2)
    ours = {name: timed(lambda name=name: FROZEN[name](train, test)) for name in QUICK}
    theirs = naive(train, test)
    table = Table("protocol", "seconds", "scikit-learn's call")
    for name, seconds in ours.items():
        table.add_row(name, f"{seconds:.1f}", f"{theirs[name]:.1f}" if name in theirs else "")
    Console().print(table)
    both = sum(ours[name] for name in theirs)
    said = (
        f"quick on {chosen.samples:,} x {chosen.width}: {sum(ours.values()):.1f} s; its "
        f"{', '.join(theirs)}: {both:.1f} s, scikit-learn's calls {sum(theirs.values()):.1f} s"
    )
    if chosen.large:
        large = clusters(chosen.large, chosen.width, chosen.classes, seed=3)
        before = peak_mb()
        seconds = timed(lambda: neighbours(large))
        more = peak_mb() - before
        said += f"; k-NN of {chosen.large:,} against themselves: {seconds:.0f} s, +{more:,.0f} MB"
    Console().print(row(said, "scikit-learn"))


if __name__ == "__main__":
    main()

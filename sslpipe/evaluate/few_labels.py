"""The linear probe of few labels: 1 % and 10 % of them, class-balanced, drawn several times.

On ImageNet the fixed lists of SimCLR stand for this; sets of one's own have no lists, so the draws
are keyed by (seed, uid), and their spread is told. Frozen features with logistic regression, as MSN
(Assran et al. 2022) reports beside fine-tuning.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor

from ..errors import SslpipeError
from .features import Features, matched
from .linear import Answered, LogisticSettings, answers
from .results import Measure
from .subsets import class_sizes, distinct, in_order, mean_of_draws, ranks_in_class

CHOOSING_FOLDS = 5


@dataclass(frozen=True, slots=True)
class FewLabelsSettings:
    """`fractions` of the labels, each drawn `draws` times; `logistic`: how a probe is fitted."""

    fractions: tuple[float, ...] = (0.01, 0.1)
    draws: int = 5
    logistic: LogisticSettings = field(default_factory=LogisticSettings)
    seed: int = 0


def few_labels(
    train: Features,
    test: Features | None = None,
    settings: FewLabelsSettings = FewLabelsSettings(),
) -> tuple[Measure, ...]:
    """Top-1 of probes that saw a fraction of the training labels and nothing of the other samples.

    Every class gives the same number of samples, at least one, or all that it has. Without a test
    set the other samples are the test; exact copies are left out before.

    Raises:
        SslpipeError: no labels, fewer than two classes, no class name in both, no draws, a
            fraction outside (0, 1], or nothing is left to test on.
        ExtraError: scikit-learn is not installed.
    """
    check(settings)
    train = in_order(train, "few labels")
    if test is None:
        train = distinct(train)
    else:
        test = matched(train, test.labelled())
    return tuple(of_fraction(train, test, fraction, settings) for fraction in settings.fractions)


def check(settings: FewLabelsSettings) -> None:
    """Refuse settings of which no draw could be made.

    Raises:
        SslpipeError: no draws, or a fraction outside (0, 1].
    """
    wrong = [fraction for fraction in settings.fractions if not 0 < fraction <= 1]
    if wrong:
        raise SslpipeError(f"few labels: a fraction of {wrong[0]:g}; give more than 0, at most 1")
    if settings.draws < 1:
        raise SslpipeError(f"few labels: {settings.draws} draws; give 1 or more")


def of_fraction(
    train: Features, test: Features | None, fraction: float, settings: FewLabelsSettings
) -> Measure:
    """The mean over draws of one fraction.

    Raises:
        SslpipeError: the fraction leaves no sample to test on.
    """
    classes = len(set(train.labels.tolist()))
    each = max(1, round(fraction * len(train.labels) / classes))
    found = []
    for draw in range(settings.draws):
        ranks_N = ranks_in_class(train, seed=settings.seed, purpose="few labels", draw=draw)
        few = train.at(ranks_N < each)
        tested = train.at(ranks_N >= each) if test is None else test
        if not len(tested.labels):
            raise SslpipeError(
                f"few labels: {fraction:.0%} of {len(train.labels)} samples leaves none to test "
                "on; give a smaller fraction or a test set"
            )
        found.append(probed(few, tested, ranks_N[ranks_N < each], settings))
    value, interval = mean_of_draws([float(answered.right.mean()) for answered in found])
    on = "the other samples" if test is None else "a test set"
    how = (
        f"logistic regression (L-BFGS, {inverse_strength(found, few)}) on {each} label(s) per "
        f"class, {len(few.labels)} in all, features standardised by these; mean of "
        f"{settings.draws} draw(s); {len(tested.labels)} test samples, {on}"
    )
    return Measure(f"{fraction:.0%} labels top-1", value, how, interval, chance=1 / classes)


def probed(
    few: Features, tested: Features, ranks_N: Tensor, settings: FewLabelsSettings
) -> Answered:
    """Fit on the few, with C chosen by folds of them, or C=1 if a class has a single one."""
    folds = min(CHOOSING_FOLDS, int(class_sizes(few.labels).min()))
    if folds < 2:
        return answers(few, tested, [], replace(settings.logistic, grid=(1.0,)))
    parts = [ranks_N % folds == fold for fold in range(folds)]
    return answers(few, tested, parts, settings.logistic)


def inverse_strength(found: list[Answered], few: Features) -> str:
    """Which C were taken, and why these."""
    least, most = min(each.c for each in found), max(each.c for each in found)
    c = f"C={least:g}" + (f" to {most:g}" if least < most else "")
    single = int(class_sizes(few.labels).min()) < 2
    return c + (", as a class has one sample" if single else ", chosen by folds of the few")

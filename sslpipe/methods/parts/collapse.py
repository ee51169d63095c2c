"""How collapses show in the metrics of several methods, and what usually causes them.

Healthy short runs on CIFAR-10 stayed far from all limits; the figures are in
tests/train/test_alarm.py and tests/train/test_collapse.py.
"""

from ..method import Numbers, Sign

SHARE = 0.2  # of the largest spread so far
LEAST_EMBEDDING_STD = 1e-3  # a healthy one is 1/sqrt(D), 0.004 at D = 65536
AGREEMENT = 0.98  # mean cosine of prediction and target: two views of an image differ by more
ENTROPY = 0.1  # nats, of the mean output: 0 = one prototype takes all
INFORMATION = 0.01  # nats, of an output about its image

CONTRASTIVE_CAUSES = (
    "a temperature that is too high (0.1 to 0.5 is usual), a learning rate that is too high or a "
    "warm-up that is too short, views that share nothing"
)
PREDICTOR_CAUSES = (
    "a gradient that reaches the target (no stop-gradient), no predictor or one that learns too "
    "slowly, a target momentum that is too low, no batch norm in the heads, a learning rate that "
    "is too high"
)
COVARIANCE_CAUSES = (
    "an invariance term that outweighs those of variance and covariance, or a learning rate that "
    "is too high"
)
PROTOTYPE_CAUSES = (
    "no centring or Sinkhorn (one prototype takes all), a teacher temperature that is too high "
    "(all are alike), a teacher momentum that is too low, prototypes that learn too early, a "
    "learning rate that is too high, gradients that are not clipped"
)
MASKED_CAUSES = (
    "targets that are not normalised, a teacher that takes gradients or moves too fast, a learning "
    "rate that is too high"
)


def spread_sign(
    name: str, what: str, row: Numbers, largest: Numbers, *, least: float = 0.0
) -> Sign | None:
    """Compare a deviation over samples with a share of the largest one that the run has had.

    `name` is its number in the row, `what` says in words whose deviation it is; below `least` it is
    always too small.
    """
    if name not in row:
        return None
    limit = max(SHARE * largest[name], least)
    said = (
        f"collapse: {what} are nearly the same for all samples "
        f"({name} = {row[name]:.2g}, below {limit:.2g}; it was {largest[name]:.2g})"
    )
    return Sign(name, row[name] < limit, said)


def embeddings_alike(row: Numbers, largest: Numbers) -> Sign | None:
    """Judge the spread of normalised embeddings; 0: they are one point."""
    what = "the embeddings that the loss compares"
    return spread_sign("embedding_std", what, row, largest, least=LEAST_EMBEDDING_STD)


def predictions_alike(row: Numbers, largest: Numbers) -> Sign | None:
    """Judge the spread of rebuilt pictures or tokens; 0: every image gets the same."""
    return spread_sign("prediction_std", "the predicted images", row, largest)


def views_agree(row: Numbers, _: Numbers) -> Sign | None:
    """Judge whether predictions and targets agree better than views of an image can."""
    if "agreement" not in row:
        return None
    said = (
        f"collapse: prediction and target are nearly the same (agreement = {row['agreement']:.3f}, "
        f"a mean cosine above {AGREEMENT}), as when all embeddings are alike"
    )
    return Sign("agreement", row["agreement"] > AGREEMENT, said)


def one_prototype(row: Numbers, _: Numbers) -> Sign | None:
    """Judge the entropy of the mean output, in nats; 0: one prototype takes all."""
    if "mean_entropy" not in row:
        return None
    entropy = row["mean_entropy"]
    said = (
        f"collapse: one prototype takes nearly all samples (mean_entropy = {entropy:.2g} nats, "
        f"below {ENTROPY})"
    )
    return Sign("mean_entropy", entropy < ENTROPY, said)


def teacher_tells_nothing(row: Numbers, _: Numbers) -> Sign | None:
    """Judge what the teacher's outputs tell of the image, in nats; 0: they are all alike."""
    if not {"mean_entropy", "teacher_entropy"} <= row.keys():
        return None
    information = row["mean_entropy"] - row["teacher_entropy"]
    said = (
        "collapse: the teacher gives nearly the same output for all samples (mean_entropy - "
        f"teacher_entropy = {information:.2g} nats, below {INFORMATION})"
    )
    return Sign("teacher_entropy", information < INFORMATION, said)

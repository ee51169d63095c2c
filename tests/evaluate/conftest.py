"""A set that trained protocols can learn."""

import pytest

from .toy_sets import pack_colours


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Ninety images to learn from and thirty to test on."""
    folder = tmp_path_factory.mktemp("colours")
    return (
        pack_colours(folder / "a", folder / "train", 90),
        pack_colours(folder / "b", folder / "test", 30, seed=1),
    )

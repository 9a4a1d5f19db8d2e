"""Axes to draw into, closed afterwards."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from rare_token_neurons.figures import axes


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return axes.panels()[1]


@pytest.fixture
def legend(ax):
    """The entries that the axes' legend would have, as a function."""
    return lambda: ax.get_legend_handles_labels()[1]

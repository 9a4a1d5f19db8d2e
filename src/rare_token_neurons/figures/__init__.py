"""Figures: what a notebook draws with, from the tables alone. `start` is loaded when it is asked for."""

__all__ = ["start"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rare_token_neurons.figures.notebook import start

    return start


def __dir__():
    return [*globals(), *__all__]

"""The package's six names, each with an example that runs."""

import doctest

import rare_token_neurons


def test_the_examples_run_one_after_another():
    import torch

    shared, runner = {"torch": torch}, doctest.DocTestRunner()
    for name in rare_token_neurons.__all__:
        function = getattr(rare_token_neurons, name)
        example = doctest.DocTestParser().get_doctest(function.__doc__, shared, name, None, None)
        assert example.examples, f"{name} shows no use"
        runner.run(example, clear_globs=False)
        shared = example.globs
    assert runner.summarize().failed == 0

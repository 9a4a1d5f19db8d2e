"""The package's six names: reached from it alone, loaded late, each with an example that runs."""

import doctest
import subprocess
import sys

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


def test_the_package_alone_loads_no_torch_and_lists_its_names():
    code = "import sys, rare_token_neurons as r; assert 'torch' not in sys.modules; print(sorted(set(r.__all__) & set(dir(r))))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == str(sorted(rare_token_neurons.__all__))

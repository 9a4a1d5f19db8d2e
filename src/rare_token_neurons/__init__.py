"""Rare token neurons: the arithmetic behind the numbered notebooks, and six names for those who write their own.

`load` a checkpoint, `capture` its activations, take `loss_changes` or the `influence` of its neurons, `fit_phases` to it, or
`start` a notebook. Each is loaded when it is first asked for: most need torch, which is slow to load.
"""

import importlib
import os
import warnings

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm asks for widgets; progress is plain text here
# read by torch when it is loaded: threads that spin cost 3 to 10 times beside other work; tensors of 2 MB and more in huge pages
# (pytorch pull request 115990) make a forward pass a tenth faster
for _name, _value in {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}.items():
    os.environ.setdefault(_name, _value)

_HOMES = {"load": "models.checkpoints.load", "capture": "ablation.capture.capture",
          "loss_changes": "ablation.neurons.loss_changes", "influence": "ablation.neurons.influence",
          "fit_phases": "curve.phases.fit", "start": "figures.notebook.start"}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _HOMES[name].rsplit(".", 1)
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


def __dir__():
    return [*globals(), *__all__]

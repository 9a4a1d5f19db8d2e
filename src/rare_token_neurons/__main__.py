"""`python -m rare_token_neurons COMMAND`: the commands beside the notebooks; each answers --help."""

import sys
from importlib import import_module

COMMANDS = {  # command: (module, what it does)
    "run": ("run", "run notebooks with papermill, parameters checked before anything starts"),
    "sweep": ("sweep", "run a grid of settings, one row of a CSV file each"),
    "audit": ("histories", "check a model's checkpoints: repeats, jumps, known issues"),
    "suite": ("training", "train mini-pythia's checkpoints"),
    "bench": ("bench", "time the ablation of every neuron"),
}


def main(argv):
    """Hand the arguments to the command's module; the exit code is what that returns."""
    lines = [f"  {name:<6} {what}" for name, (_, what) in COMMANDS.items()]
    usage = "\n".join(["usage: python -m rare_token_neurons COMMAND [--help]", "", "commands:", *lines])
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    if argv[0] not in COMMANDS:
        print(f"There is no command {argv[0]!r}.\n{usage}", file=sys.stderr)
        return 2
    return import_module(f"rare_token_neurons.{COMMANDS[argv[0]][0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

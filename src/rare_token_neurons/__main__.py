"""`python -m rare_token_neurons COMMAND`: the commands beside the notebooks; each answers --help."""

import argparse
import sys
from importlib import import_module

# Command: (module, function, what it does). Modules are loaded when they are asked for: `run` has no use for torch.
COMMANDS = {
    "run": ("runner.run", "main", "run notebooks with papermill, parameters checked before anything starts"),
    "sweep": ("runner.sweep", "main", "run a grid of settings, one row of a CSV file each"),
    "audit": ("__main__", "check_model", "check a model's checkpoints: repeats, jumps, known issues"),
    "suite": ("embedded.mini_pythia.train", "main", "train mini-pythia's checkpoints"),
    "calibrate": ("tables.nulls", "calibrate", "count on planted samples how often the curve's tests answer rightly"),
    "bench": ("bench", "main", "time the ablation of every neuron"),
    "pages": ("pages", "main", "write the parts of the README files that come from tables, notebooks and docstrings"),
}
AUDITED = ("steps", "stage", "keep_weights", "pickles")  # parameters of `audit`
INNER = {"row": ("runner.sweep", "row", "one row of a grid, in the process that `sweep` starts for it")}  # not for people


def main(argv):
    """Hand the arguments to the command's function; the exit code is what that returns, and 130 when interrupted."""
    lines = [f"  {name:<9} {what}" for name, (*_, what) in COMMANDS.items()]
    usage = "\n".join(["usage: python -m rare_token_neurons COMMAND [--help]", "", "commands:", *lines])
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    if argv[0] not in COMMANDS | INNER:
        print(f"There is no command {argv[0]!r}.\n{usage}", file=sys.stderr)
        return 2
    module, function, _ = (COMMANDS | INNER)[argv[0]]
    try:
        return getattr(import_module(f"rare_token_neurons.{module}"), function)(argv[1:])
    except KeyboardInterrupt:
        exec("")  # forgets an interrupt inside another exec (dataclasses), at which python -m would die by the signal
        print("\nInterrupted; the same command goes on from what is finished.", file=sys.stderr)
        return 130


def check_model(argv=None):
    """Command line of `audit`.

    Returns
    -------
    int: 0; 1 when a checkpoint is flagged; 2 when there is no such model, its branches are named in no known way, or a file
    is damaged
    """
    from rare_token_neurons import settings as parameters

    parser = argparse.ArgumentParser(
        prog="python -m rare_token_neurons audit",
        description="Hash, step and distance in weight space of every checkpoint of a model; repeats, strangers, "
        "checkpoints out of order and known issues are flagged. Exit code 1 when there is one.")
    parser.add_argument("model", metavar="MODEL", help=parameters.HELP["model"])
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="one parameter: " + ", ".join(AUDITED))
    arguments = parser.parse_args(argv)

    from rare_token_neurons.models import audit, checkpoints
    from rare_token_neurons.tables import checkpoints as passes

    try:
        settings = parameters.check(dict(arguments.p) | {"model": arguments.model}, ["model", *AUDITED])
        found = passes.checkpoints(settings)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    if found["step"].notna().any():
        shortened = found.assign(weight_hash=found["weight_hash"].str[:12]).drop(columns=["known_issue", "reason"])
        print(shortened.to_string(index=False, na_rep="", float_format="{:.4f}".format), "\n")
    elif unread := checkpoints.unread(settings.model):
        print(unread, file=sys.stderr)
        return 2
    print(audit.sentence(settings.model, found))
    return int(found["flagged"].any())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

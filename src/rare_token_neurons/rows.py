"""One row of a grid: a process of its own, which ends when the process that started it ends.

`python -m rare_token_neurons.rows ARGUMENTS` is `python -m rare_token_neurons run ARGUMENTS`, interrupted as soon as its
standard input closes. What starts a row holds the other end, so that none goes on when a worker is killed.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

from rare_token_neurons import __main__ as commands
from rare_token_neurons import paths

PATIENCE = 20  # seconds that an interrupted row has to end its kernel
SENTENCE = ", kept, stopped at cell ["  # of `run.NotebookError`; all after it is the error

_running, _door = {}, threading.Lock()


def execute(name, arguments, log, threads=None):
    """Run a row and wait for its end; what it prints is added to its log.

    Parameters
    ----------
    name : str, the row's name for `stop`.
    arguments : list of str, of the command `run`.
    log : str, a path from the repository's root, which other machines may hold elsewhere.
    threads : OMP_NUM_THREADS of the row, unless that is set already.

    Returns
    -------
    (str, float): what went wrong, "" where nothing did; seconds
    """
    path, start = paths.ROOT / log, time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = ({"OMP_NUM_THREADS": str(threads)} if threads else {}) | os.environ
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(paths.ROOT / "src"), os.environ.get("PYTHONPATH")]))
    with path.open("ab") as file:
        file.write(f"{socket.gethostname()}: python -m rare_token_neurons run {shlex.join(arguments)}\n".encode())
        file.flush()
        begin = file.tell()
        with _door:
            process = _running[name] = subprocess.Popen(
                [sys.executable, "-m", __name__, *arguments], cwd=paths.ROOT, env=environment, stdin=subprocess.PIPE,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait()
        finally:
            process.stdin.close()
            with _door:
                _running.pop(name, None)
    return _reason(code, path.read_bytes()[begin:].decode(errors="replace")), time.perf_counter() - start


def stop(names):
    """Interrupt the rows of these names that this process runs; each ends its kernel, then itself."""
    with _door:
        for name in set(names) & set(_running):
            _running[name].stdin.close()


def _reason(code, told):
    """Why a row failed, from its exit code and what it printed: the notebook, the cell and the error."""
    lines = [line for line in told.splitlines() if line.strip()]
    if code == 0:
        return ""
    if code < 0:
        memory = "; most often the machine had no memory left" if code == -signal.SIGKILL else ""
        return f"The row's process was ended by {signal.Signals(-code).name}{memory}."
    for number in reversed(range(len(lines))):
        if SENTENCE in lines[number]:
            return "\n".join(lines[number:])
    return f"The row's process ended with code {code}: {lines[-1] if lines else 'it printed nothing'}"


def _follow():
    """Interrupt this process when its standard input closes; end it when that was not enough."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(PATIENCE)
    os._exit(130)


def main(arguments):
    """A row's process.

    Returns
    -------
    int: as `run`
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it would be ignored
    threading.Thread(target=_follow, daemon=True).start()
    return commands.main(["run", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How far a grid is: one line, rewritten on a terminal, and added wherever output is kept whenever a row has ended."""

import shutil
import sys
import time


class Status:
    """Counts of rows and the line made of them.

    Parameters
    ----------
    what : str, what is counted, such as "rows".
    total : int.
    stream : where the line is written.
    clock : callable that returns seconds.
    """

    def __init__(self, what, total, *, stream=None, clock=time.monotonic):
        self.what, self.total, self.stream, self.clock = what, total, stream or sys.stdout, clock
        self.start, self.done, self.failed, self.running, self.seconds = clock(), 0, 0, 0, []

    @property
    def waiting(self):
        """How many neither run nor have ended."""
        return max(0, self.total - self.done - self.failed - self.running)

    @property
    def left(self):
        """Seconds until all have ended, as long as the finished ones on average and as many at once as now; None before."""
        if not self.seconds:
            return None
        return sum(self.seconds) / len(self.seconds) * (self.waiting + self.running) / max(1, self.running)

    @property
    def line(self):
        """The counts, the time that has passed, and the time left."""
        left = "" if self.left is None or not self.waiting + self.running else f", about {duration(self.left)} left"
        return (f"{self.done} of {self.total} {self.what} done, {self.running} running, {self.failed} failed, "
                f"{self.waiting} waiting; {duration(self.clock() - self.start)}{left}")

    def ended(self, label, seconds=None, *, failed=False):
        """Count a row that has ended and say so; one without seconds was finished before."""
        self.done, self.failed = self.done + (not failed), self.failed + failed
        if seconds is not None and not failed:
            self.seconds.append(seconds)
        self.tell(f"{label}: {'failed' if failed else 'unchanged' if seconds is None else duration(seconds)}")

    def tell(self, text):
        """Write a line that stays; the status follows it."""
        print(f"{self._clear}{text}", file=self.stream, flush=True)
        if self.stream.isatty():
            self.show(self.running)

    def show(self, running):
        """Renew the status line: on a terminal at every call, elsewhere where a row has started or ended."""
        changed, self.running = running != self.running, running
        if self.stream.isatty():
            print(f"{self._clear}{self.line[:shutil.get_terminal_size().columns - 1]}", end="", file=self.stream, flush=True)
        elif changed:
            print(self.line, file=self.stream, flush=True)

    @property
    def _clear(self):
        return "\r\033[K" if self.stream.isatty() else ""


def duration(seconds):
    """Seconds in words: 45 s, 12 min, 3 h 10 min."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"

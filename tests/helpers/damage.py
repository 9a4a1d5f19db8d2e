"""Ways in which a file is damaged."""

import os


def truncate(path):
    """Half of it is left."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path, place=None):
    """One byte is another: the middle one, or that at a place."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 0xFF
    path.write_bytes(content)


def empty(path):
    """Nothing is left."""
    path.write_bytes(b"")


DAMAGE = [truncate, flip, empty]

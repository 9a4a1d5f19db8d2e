"""The files of a checkpoint that are its weights: which of them count, and pickles read into safetensors.

Where an index is, exactly the files that its weight_map names count; else the single file. Pickles count only where there
are no safetensors. Everything else (a single file beside an index, which transformers would prefer, adapters, leftovers) is
neither downloaded nor hashed nor read.
"""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from rare_token_neurons import files
from rare_token_neurons.paths import CACHE, shown

SINGLE, PICKLE = "model.safetensors", "pytorch_model.bin"
FOLDER = CACHE / "pickles"  # what pickles hold, as safetensors, by the pickle's sha256


class NoWeights(FileNotFoundError):
    """A checkpoint without weights, or with an index of files that are not there. (What is said of a checkpoint by this
    module ends a sentence that begins with its name: `said_of`.)"""


class Refused(FileNotFoundError):
    """A checkpoint whose weights are pickles that nobody permitted to be read."""


@contextlib.contextmanager
def said_of(where):
    """Name a checkpoint in what is said of its weights inside."""
    try:
        yield
    except (NoWeights, Refused) as error:
        raise type(error)(f"{where} {error}.") from None


@dataclass(frozen=True)
class Files:
    """Where a checkpoint lies: the folder of its configuration and tokenizer, and the safetensors that are its weights."""

    folder: Path
    weights: tuple = ()


# ---- which count


def index_of(single):
    """The name of the index that stands for a single file."""
    return f"{single}.index.json"


def counted(names, read):
    """The names of the files that are a checkpoint's weights, sorted.

    Parameters
    ----------
    names : of all files of the checkpoint.
    read : function of an index's name that returns its text.

    Raises
    ------
    NoWeights
        There is neither an index nor a single file; the index cannot be read, or names files that are not there.
    """
    for single in (SINGLE, PICKLE):
        index = f"{single}.index.json"
        if index in names:
            found = _named(read(index))
            odd = [name for name in found if not str(name).endswith(Path(single).suffix) or name not in names]
            if odd or not found:
                raise NoWeights(f"lacks {odd[0]!r}, which its {index} names" if odd else f"has a {index} that names no file")
            return found
        if single in names:
            return [single]
    raise NoWeights(f"holds no weights: neither {SINGLE} nor shards with their index, and no pickles")


def _named(text):
    """The files that the text of an index names, sorted; [] where it is none."""
    try:
        return sorted(set(json.loads(text)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def of_folder(folder):
    """The files of a folder that are its weights, list of Path (see `counted`)."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    return [folder / name for name in counted(names, lambda name: (folder / name).read_text(encoding="utf-8"))]


@contextlib.contextmanager
def opened(paths):
    """{name: safetensors slice} of all tensors in weight files.

    Raises
    ------
    ValueError
        Two files hold a tensor of the same name.
    """
    with contextlib.ExitStack() as stack:
        found = {}
        for path in paths:
            handle = stack.enter_context(safe_open(path, framework="pt"))
            parts = {name: handle.get_slice(name) for name in handle.keys()}
            if twice := sorted(found.keys() & parts.keys()):
                raise ValueError(f"Two weight files of {shown(path.parent)} hold {twice[0]}.")
            found |= parts
        yield found


# ---- pickles


def are_pickles(names):
    """Whether the names of weight files are those of pickles."""
    return any(Path(name).suffix == Path(PICKLE).suffix for name in names)


def permit(names, pickles):
    """Refuse files that are pickles, unless they may be converted.

    Parameters
    ----------
    names : of weight files ; pickles : "refuse" or "convert".
    """
    if are_pickles(names) and pickles != "convert":
        raise Refused("holds its weights as pickles alone, which may carry code: -p pickles convert reads the tensors in "
                      "them, and runs nothing")


def safe(path, sha256=None):
    """A file of safetensors: the file itself, or what was made of a pickle at first use, in the cache.

    Parameters
    ----------
    sha256 : of the file's bytes, where it is known.

    Raises
    ------
    ValueError
        The pickle is no zip of plain tensors by name; nothing in it is run.
    """
    if not are_pickles([path]):
        return path
    target = place_of(sha256 or files.sha256(path))
    with files.lock(target):
        if not files.whole(target):
            from safetensors.torch import save_file  # torch is slow to load, and names and hashes need none

            tensors = _read(path)
            with files.new_file(target) as temporary:
                save_file(tensors, temporary, metadata={"format": "pt"})
            files.seal(target)
    return target


def converted(sha256):
    """The file that was made of a pickle of this sha256; None where there is none, or a damaged one."""
    return place_of(sha256) if sha256 and files.whole(place_of(sha256)) else None


def forget(sha256):
    """Delete what was made of a pickle."""
    for path in (place_of(sha256), Path(f"{place_of(sha256)}.sha256")):
        path.unlink(missing_ok=True)


def place_of(sha256):
    """Where what is made of a pickle lies."""
    return FOLDER / f"{sha256}.safetensors"


def _read(path):
    """The tensors of a pickle by name, those that are tied once."""
    import torch

    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            raise ValueError(f"The pickle {shown(path)} is refused: it is not in the zip format that torch.save writes.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling raises what comes
        reason = re.split(r"\n|\. ", str(error).strip() or type(error).__name__)[0]
        raise ValueError(f"The pickle {shown(path)} is refused: {reason[:200]}") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) and _plain(part) for name, part in content.items()):
        raise ValueError(f"The pickle {shown(path)} is refused: it holds something else than plain tensors by name.")
    once = {(part.data_ptr(), part.dtype, part.shape, part.stride()) if part.numel() else name: name
            for name, part in reversed(content.items())}
    return {name: _own(content[name].detach()) for name in once.values()}


def _own(part):
    """A tensor that fills its storage in order, copied where it is a part of one."""
    whole = part.numel() * part.element_size() == part.untyped_storage().nbytes()
    return part.contiguous() if whole else part.clone().contiguous()


def _plain(part):
    """Whether it is a dense tensor whose values all lie in the file, not one of a few values repeated."""
    import torch

    return (type(part) in (torch.Tensor, torch.nn.Parameter) and part.layout == torch.strided and part.device.type == "cpu"
            and not part.is_quantized and part.numel() * part.element_size() <= part.untyped_storage().nbytes())

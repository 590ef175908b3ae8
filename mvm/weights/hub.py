"""Models by their name on the Hugging Face hub, such as "MCG-NJU/videomae-base"."""

import functools
import re

from etils import epath

from mvm.types import UserError

# Read in this order; the first that is there is enough. Nothing else is fetched, nothing is run.
_FILES = ("model.safetensors", "pytorch_model.bin")


@functools.cache
def local(path: str) -> str:
    """The path itself, or the folder that a name on the hub is fetched to, once.

    What exists here goes first; nothing below a folder that exists, or below runs/, is such a name.
    """
    owner = re.fullmatch(r"([\w-][\w.-]*)/[\w-][\w.-]*", not_an_address(path))
    if not owner or owner[1] == "runs" or epath.Path(owner[1]).exists():
        return path
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path} does not exist; for a name on the Hugging Face hub, pip install "
            f"huggingface_hub"
        ) from error
    try:
        for name in _FILES:
            wanted = ["config.json", name]
            folder = huggingface_hub.snapshot_download(path, allow_patterns=wanted)
            if (epath.Path(folder) / name).exists():
                return folder
    except Exception as error:  # Each release has classes of its own for a network that fails.
        raise UserError(
            f"{path} does not exist and the Hugging Face hub does not give it "
            f"({type(error).__name__})"
        ) from error
    raise UserError(f"{path} on the Hugging Face hub has none of {', '.join(_FILES)}")


def not_an_address(path: str) -> str:
    """The path itself; UserError for a web address."""
    if re.match(r"(https?|ftp|file)://", path):
        raise UserError(f"{path} is an address; download the file and give its path")
    return path

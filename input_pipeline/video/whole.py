"""Files that appear whole or not at all, whenever a process is killed."""

from etils import epath


def write(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file beside it, which then takes its name."""
    part = epath.Path(f"{path}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)

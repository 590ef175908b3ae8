"""Numbers of a run: rows in files, TensorBoard's if TensorFlow is there, and Weights & Biases."""

import datetime
import json
import logging
import os
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

from mvm.types import UserError, first_line

log = logging.getLogger(__name__)


def replace_text(path: epath.PathLike, text: str) -> None:
    """As `replace`."""
    replace(path, text.encode())


def replace(path: epath.PathLike, content: bytes) -> None:
    """Writes a file atomically: a kill leaves the old one or the new one."""
    path = epath.Path(path)
    if "://" in os.fspath(path):  # There an object appears whole, and nothing can be renamed.
        path.write_bytes(content)
        return
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def read_rows(path: epath.PathLike) -> list[dict[str, Any]]:
    """Rows of a metrics file, without those that a crash or a user cut short."""
    path = epath.Path(path)
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, TypeError, LookupError, OverflowError):
            log.warning("%s: line %d is no row, it is left out", path, number)
    return rows


def last_values(path: epath.PathLike) -> dict[str, Any]:
    """The last value of every key in a metrics file."""
    return {key: value for row in read_rows(path) for key, value in row.items()}


class Metrics:
    """Appends rows to the files of a run, to TensorBoard's, and to a project at Weights & Biases.

    `metrics.jsonl` is the same however often a run is interrupted; what depends on the clock goes
    into `speed.jsonl`. Rows of an earlier attempt later than `step`, where the run resumes, are
    dropped. `wandb.txt` keeps the id of the run there, which goes on when this one resumes.
    """

    def __init__(
        self, workdir: epath.PathLike, step: int = 0, active: bool = True, project: str = ""
    ):
        self.active = active
        if not active:
            return
        self._folder, self._texts, self._board = epath.Path(workdir), {}, None
        try:
            from clu import metric_writers  # Needs TensorFlow.

            for old in self._folder.glob("events.out.tfevents*"):
                old.unlink()
            self._board = metric_writers.SummaryWriter(str(workdir))
        except ImportError:
            pass
        for name in ("metrics.jsonl", "speed.jsonl"):
            rows = [row for row in read_rows(self._folder / name) if row["step"] <= step]
            self._texts[name] = "".join(json.dumps(row) + "\n" for row in rows)
            replace_text(self._folder / name, self._texts[name])
            for row in rows:
                self._show(row)
        self._remote = self._begin(project) if project else None

    def _begin(self, project: str) -> Any:
        import wandb

        file = self._folder / "wandb.txt"
        if not file.exists():
            replace_text(file, uuid.uuid4().hex[:12] + "\n")
        wandb.finish()  # The run of the stage before.
        try:
            return wandb.init(
                project=project,
                id=file.read_text().strip(),
                name=self._folder.name,
                config=json.loads((self._folder / "config.json").read_text()),
                resume="allow",
                dir=None if "://" in os.fspath(self._folder) else os.fspath(self._folder),
            )
        except wandb.Error as error:
            cure = "`wandb login`, or WANDB_MODE=offline"
            raise UserError(f"train.wandb={project}: {first_line(error)}; {cure}") from error

    def write(self, step: int, values: Mapping[str, float], name: str = "metrics.jsonl") -> None:
        """Adds a row: the step and its values, keys in order."""
        if not self.active:
            return
        row = {"step": step, **{k: values[k] for k in sorted(values)}}
        line, path = json.dumps(row) + "\n", self._folder / name
        if "://" in os.fspath(path):  # Cloud storage cannot append.
            self._texts[name] += line
            path.write_text(self._texts[name])
        else:
            with path.open("a") as file:
                file.write(line)
        self._show(row)
        if self._remote is not None:
            self._remote.log(dict(values), step=step)

    def _show(self, row: Mapping[str, float]) -> None:
        if self._board is not None:
            self._board.write_scalars(row["step"], {k: row[k] for k in row if k != "step"})
            self._board.flush()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as "5:07:00"."""
    return str(datetime.timedelta(seconds=round(seconds)))

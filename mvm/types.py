"""The words the whole code base shares: grids, masks and masking strategies."""

import difflib
import importlib
import math
import sys
from collections.abc import Iterable
from dataclasses import MISSING, dataclass
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Array, Float, Int, Key

Params = dict[str, Any]
"""Nested dict of float32 arrays; a leaf's path, joined by "/", is its name everywhere."""

Metrics = dict[str, Any]
"""Scalars by name."""

State = dict[str, Any]
"""Of training: `step` int32, `params`, `opt`, `key` uint32 (raw PRNG key) and, where a task or run
has them, `frozen` (parameters that are not trained) and `ema` (a moving average of `params`)."""


class UserError(ValueError):
    """A mistake in a configuration, a list or a file: one line that names it and the cure."""


def first_line(error: BaseException) -> str:
    """The first line of its message, cut; its name if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def near(name: str, known: Iterable[str]) -> str:
    """What a message about an unknown name goes on with: the nearest one, and all."""
    if not (known := sorted(known)):
        return ""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known)})"


def fits(value: Any, default: Any) -> bool:
    """Whether a value is of the type of its default, if it has one; whole numbers are floats."""
    kinds = (float, int) if isinstance(default, float) else type(default)
    return default in (None, MISSING) or isinstance(value, kinds)


def imported(*names: str) -> None:
    """Imports those of a user's own modules, which have a dot, that the user named."""
    for name in names:
        try:
            if "." in name:
                importlib.import_module(name)
        except Exception as error:  # Whatever is in it.
            raise UserError(
                f"module {name} cannot be imported ({first_line(error)}); install its package, or "
                f"put the folder of the package on PYTHONPATH"
            ) from error


def module(key: str, name: str, package: str, known: list[str]) -> ModuleType:
    """The module of a package of ours, or a user's own (`my_package.name`) if it is imported.

    It imports nothing of a user's: the name may stand in a file of somebody else's.
    """
    if name in known:
        return importlib.import_module(f"{package}.{name}")
    if "." not in name:
        own = "; one of your own has a dot, such as my_package.name"
        raise UserError(f"{key}={name!r} is unknown{near(name, known)}{own}")
    if name not in sys.modules:
        raise UserError(
            f"{key}={name} is a module of somebody's own, which is not imported because a file "
            f"names it; if you trust it, `import {name}`, in a command --import={name}"
        )
    return sys.modules[name]


class Grid(NamedTuple):
    """Counts of tubelets along time, height and width; tokens are numbered t-major."""

    t: int
    h: int
    w: int

    @property
    def n(self) -> int:
        """N, the number of tokens."""
        return self.t * self.h * self.w


class Tubelet(NamedTuple):
    """Size of one token's pixel block in frames and pixels."""

    t: int
    h: int
    w: int

    def grid(self, num_frames: int, height: int, width: int) -> Grid:
        """The grid of a clip `[num_frames, height, width, 3]`, which tubelets have to divide."""
        clip = (num_frames, height, width)
        if any(size % block for size, block in zip(clip, self)) or not all(clip):
            raise UserError(
                f"a clip of {num_frames} frames of {height}x{width} px is not divisible into "
                f"tubelets of {self.t}x{self.h}x{self.w}; change data.num_frames, "
                f"data.image_size or model.tubelet"
            )
        return Grid(*(size // block for size, block in zip(clip, self)))

    @property
    def pixels(self) -> int:
        """P, the length of one flattened RGB tubelet."""
        return math.prod(self) * 3


class Mask(NamedTuple):
    """Which tokens the encoder sees and which the decoder reconstructs."""

    visible: Int[Array, "B V"]
    """Ascending token indices the encoder sees."""
    target: Int[Array, "B M"]
    """Ascending token indices the decoder reconstructs; M may be 0."""
    weight: Float[Array, "B M"]
    """1 where the loss counts, 0 where a target is also visible."""


@dataclass(frozen=True)
class Strategy:
    """A masking strategy for one grid; further fields are its hyper-parameters.

    Its counts are static, its draw is pure, and a clip's mask does not depend on its batch. One
    that draws at all draws anew for every clip.
    """

    grid: Grid
    needs_tokens: ClassVar[bool] = False
    """Whether `sample` looks at `tokens`; otherwise only their batch size is read."""
    needs_pixels: ClassVar[bool] = False
    """Whether `sample` gets clips in place of tokens: float32 `[B, T, H, W, 3]` in [0, 1]."""
    network: ClassVar[Any] = None
    """For a strategy that learns where to look (AdaMAE): `network(width, run, rngs=rngs)`
    builds what makes `scores` of tokens."""
    loss: ClassVar[Any] = None
    """`loss(scores, error, mask) -> scalar`: what that network minimises, given the error `[B, M]`
    of each target; added to the loss of reconstruction."""

    @property
    def name(self) -> str:
        """Of its file, which is `mask.name`."""
        return type(self).__module__.removeprefix("mvm.masking.")

    def counts(self) -> tuple[int, int]:
        """(visible, target), of N tokens each."""
        raise NotImplementedError

    @property
    def num_visible(self) -> int:
        """V, tokens the encoder sees."""
        return self.counts()[0]

    @property
    def num_target(self) -> int:
        """M, tokens the decoder reconstructs."""
        return self.counts()[1]

    def sample(
        self,
        key: Key[Array, ""],
        tokens: Float[Array, "B N D"],
        scores: Float[Array, "B N"] | None = None,
    ) -> Mask:
        """Draws a mask; strategies annotate these as plain arrays.

        Args:
            key: one for the batch; each clip folds in its row.
            tokens: patch embeddings before positions are added; or see `needs_pixels`.
            scores: of each token, where they are known: what `network` says, or its motion.
        """
        raise NotImplementedError

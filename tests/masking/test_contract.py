"""What every masking strategy promises; a new file in mvm/masking is found by itself."""

import functools
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models_on_disk import random_params, refused

from mvm import masking, tasks
from mvm.types import Grid, UserError

NAMES = masking.names()
GRID = Grid(4, 6, 6)
# Every strategy takes scores; only one that learns, and so has a loss, cannot do without them.
LEARNT = {name for name in NAMES if masking.build(name, GRID).loss is not None}
CASES = [(name, True) for name in NAMES] + [(name, False) for name in NAMES if name not in LEARNT]


def scores_of(batch, grid):
    """Random log-probabilities."""
    logits = 2 * np.random.default_rng(5).normal(size=(batch, grid.n))
    return jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))


def tokens_of(batch, grid):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, grid.n, 8)), jnp.float32)


TOKENS, SCORES = tokens_of(8, GRID), scores_of(8, GRID)


@functools.cache
def jitted(name):
    """A strategy at its defaults and its compiled `sample`."""
    strategy = masking.build(name, GRID)
    return strategy, jax.jit(strategy.sample)


def drawn(name, scored=True, seed=0, tokens=TOKENS, scores=SCORES):
    mask = jitted(name)[1](jax.random.key(seed), tokens, scores if scored else None)
    return jax.tree.map(np.asarray, mask)


def check(strategy, mask, batch, grid):
    """Counts, order, range, and weights that are 0 where a target is visible."""
    assert mask.visible.shape == (batch, strategy.num_visible)
    assert mask.target.shape == mask.weight.shape == (batch, strategy.num_target)
    assert mask.visible.dtype == mask.target.dtype == np.int32
    assert mask.weight.dtype == np.float32
    for index in (mask.visible, mask.target):
        assert (np.diff(index, axis=1) > 0).all()
        assert index.size == 0 or (index.min() >= 0 and index.max() < grid.n)
    for row in range(batch):
        shared = np.isin(mask.target[row], mask.visible[row])
        np.testing.assert_array_equal(mask.weight[row], ~shared)
        assert strategy.name == "dual" or not shared.any()


@pytest.mark.parametrize(("name", "scored"), CASES)
def test_a_mask_is_valid_and_of_its_key_and_its_own_clip_alone(name, scored):
    draw = functools.partial(drawn, name, scored)
    first, other = draw(0), draw(1)
    check(jitted(name)[0], first, 8, GRID)
    # Clips that are equal are masked differently, unless nothing is drawn.
    masks = draw(0, *(jnp.repeat(x[:1], 8, axis=0) for x in (TOKENS, SCORES)))
    assert (first.visible != other.visible).any() == (len(np.unique(masks.visible, axis=0)) > 1)
    # A row does not depend on its batch; as these are drawn again, nor on anything but the key.
    few = draw(0, TOKENS[:4], SCORES[:4])
    changed = draw(0, TOKENS.at[5:].multiply(-2.0), SCORES.at[5:].multiply(0.5))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:4], b), first, few)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:5], b[:5]), first, changed)


@pytest.mark.parametrize("name", sorted(LEARNT))
def test_what_a_network_learns_is_finite_and_does_not_reach_the_errors(name):
    strategy, mask = masking.build(name, GRID), drawn(name)
    error = np.random.default_rng(6).uniform(size=mask.target.shape).astype(np.float32)
    value = lambda scores, error: strategy.loss(scores, error, mask)  # noqa: E731
    loss, slopes = jax.jit(jax.value_and_grad(value, (0, 1)))(SCORES, error)
    assert np.isfinite(loss)
    assert 0 < np.abs(slopes[0]).max() < np.inf
    np.testing.assert_array_equal(slopes[1], 0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    grid=st.builds(Grid, st.integers(2, 3), st.integers(1, 4), st.integers(1, 4)),
    ratio=st.floats(0.0, 1.0),
)
@example(grid=Grid(2, 2, 4), ratio=0.5)
@example(grid=Grid(3, 2, 2), ratio=0.0)
def test_any_small_grid_and_ratio_gives_a_valid_mask_or_one_line(name, grid, ratio):
    given = {"mask_ratio": ratio} if "mask_ratio" in masking.hparams(name) else {}
    try:
        visible, target = type(masking.build(name, GRID))(grid, **given).counts()
    except UserError:
        visible = target = -1
    if visible < 1 or target < 0:
        said = f"{grid.h}x{grid.w}|tokens of {grid.n};"
        refused(said, masking.build, name, grid, **given)
        return
    strategy = masking.build(name, grid, **given)
    sample = jax.jit(strategy.sample)
    mask = sample(jax.random.key(0), tokens_of(2, grid), scores_of(2, grid))
    check(strategy, jax.tree.map(np.asarray, mask), 2, grid)


def test_what_is_unknown_or_impossible_is_one_line():
    for name in NAMES:
        said = r"has no mask_ration; did you mean 'mask_ratio'\?"
        refused(said, masking.build, name, GRID, mask_ration=0.9)
        refused("^mask.mask_ratio='x'", masking.build, name, GRID, mask_ratio="x")
    for name, grid, values, said in (
        ("everset", GRID, {}, "'everset' is unknown; did you mean 'everest'"),
        # No visible token; more visible tokens than candidates.
        ("everest", GRID, {"mask_ratio": 1.0}, "'mask_ratio': .* of 144"),
        ("everest", GRID, {"keep_ratio": 0.2, "mask_ratio": 0.5}, "'mask_ratio': .* of 144"),
        ("dual", Grid(4, 7, 4), {}, "7x4 tokens .* change data.image_size"),
        ("dual", GRID, {"decoder_ratio": 0.4}, "mask.decoder_ratio=0.4"),
    ):
        refused(said, masking.build, name, grid, **values)


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """The Python of docs/masks.md; its mask is in a package of one's own, not imported yet."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "masks.md").read_text()
    mask, recipe, script = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_masks").mkdir()
    (tmp_path / "my_masks" / "brightness.py").write_text(mask)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield recipe, script
    for name in ("my_masks", "my_masks.brightness"):
        sys.modules.pop(name, None)


def test_a_mask_of_ones_own_sees_pixels_and_only_who_names_it_imports_it(guide, monkeypatch):
    said = "my_masks.brightness .* --import=my_masks"
    refused(said, masking.hparams, "my_masks.brightness")
    assert "my_masks.brightness" not in sys.modules
    leaf = {"__file__": "bright_ucf101.py"}
    exec(guide[0], leaf)
    config = leaf["get_config"]("smoke")
    tasks.check(config, ["mask.hidden"])
    assert leaf["get_config"]("finetune").mask.name == ""
    task = tasks.build(config)
    strategy, grid = task.strategy, task.grid
    assert (strategy.name, strategy.contrast) == ("my_masks.brightness", 2.0)
    assert strategy.counts() == (grid.n // 4, grid.n * 3 // 4)
    video = np.random.default_rng(0).integers(0, 40, (8, 16, 32, 32, 3), np.uint8)
    video[:, :, 16:, 16:] = 250  # The bright quarter is seen, but for a few tokens.
    encoder = task.model(random_params(task.abstract), {}).encoder
    select = lambda x: encoder.select(jax.random.key(1), *encoder.split(x), strategy)  # noqa: E731
    mask, few = select(video), select(jnp.asarray(video[:5], jnp.float32) / 255)
    check(strategy, jax.tree.map(np.asarray, mask), 8, grid)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:5], b), mask, few)
    y, x = np.unravel_index(mask.visible, grid)[1:]
    assert ((y >= 2) & (x >= 2)).mean() > 0.8
    monkeypatch.setattr(type(strategy), "counts", lambda self: (1, 2))
    refused(r"its counts are \(1, 2\), but it draws", select, video)


def test_a_mask_is_drawn_without_a_model(guide):
    found = {"frames": np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)}
    exec(guide[1], found)
    assert found["mask"].visible.shape == (1, 12)
    assert pathlib.Path("mask.png").stat().st_size > 10_000

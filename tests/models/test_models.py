"""The models: their initial weights, and that no saving or option changes the function."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from golden import close
from models_on_disk import random_params, video

from mvm import objectives, tasks
from mvm.models import attention, positions, tubelets, vit
from mvm.optim import path_of
from mvm.runtime import checkpoint
from mvm.types import Grid

VIDEO = video(2, 4, 32, 32)


def build(task="pretrain", **model):
    return tasks.build(tiny.config_of(task, **{"attention": "xla", **model}))


def params_of(task):
    """Random weights, of norms around 1, large enough for every path in it to matter."""
    around = lambda path, leaf: 0.5 * leaf + path_of(path).endswith("scale")  # noqa: E731
    return jax.tree_util.tree_map_with_path(around, random_params(task.abstract))


# --- exact savings, and ways to compute -----------------------------------------------------------


def plainly(task, params, mask):
    """The loss with a given mask: every token is embedded, normalised and decoded."""
    model = task.model(params, {})
    encoder, decoder = model.encoder, model.decoder
    pixels, grid = tubelets.split(VIDEO, task.tubelet)
    every = encoder.embed(tubelets.standardise(pixels))
    every = encoder.positions(every, grid, jnp.arange(grid.n))
    x = vit.apply_stack(encoder.blocks, tubelets.gather(every, mask.visible), vit.Run())
    x = model.encoder_to_decoder(encoder.norm(x))
    hidden = jnp.broadcast_to(model.mask_token[...], (*mask.target.shape, x.shape[-1]))
    x = jnp.concatenate([x, hidden], axis=1)
    x = decoder.positions(x, grid, jnp.concatenate([mask.visible, mask.target], axis=1))
    y = decoder.last(vit.apply_stack(decoder.blocks, x, vit.Run()))
    y = decoder.head(decoder.norm(y))[:, mask.visible.shape[1] :]
    target = tubelets.gather(tubelets.targets(pixels), mask.target)
    return objectives.over_targets(objectives.token_error(y, target), mask.weight)


@pytest.fixture(scope="module")
def plain():
    """Weights, and `(weights, mask) -> (loss, gradients)` of the plain way to compute."""
    task = build(remat="none")
    return params_of(task), jax.jit(jax.value_and_grad(partial(plainly, task)))


def trained(params, **model):
    """`((loss, mask), gradients)` as a step of EVEREST computes them."""
    task = build(**model)

    def loss(params):
        out = task.model(params, {})(jax.random.key(3), VIDEO, task.strategy)
        error = objectives.token_error(out.predicted, out.target)
        return objectives.over_targets(error, out.mask.weight), out.mask

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("remat", ["none", "dots", pytest.param("full", marks=pytest.mark.slow)])
def test_a_step_is_that_of_embedding_and_decoding_all_tokens(plain, remat):
    params, grad = plain
    (loss, mask), grads = trained(params, remat=remat)
    # 42 units in the last place: each CPU adds in an order of its own.
    jax.tree.map(partial(close, tolerance=5e-6), (loss, grads), grad(params, mask))


def test_bfloat16_keeps_float32_weights_and_nearly_the_loss(plain):
    params, grad = plain
    (loss, mask), grads = trained(params, dtype="bfloat16")
    expected, plain_grads = grad(params, mask)
    own = build(dtype="bfloat16").abstract
    assert {x.dtype for x in jax.tree.leaves((loss, own, grads))} == {jnp.dtype("float32")}
    assert loss != expected
    np.testing.assert_allclose(loss, expected, rtol=2e-2)
    flat = lambda tree: np.concatenate([g.ravel() for g in jax.tree.leaves(tree)])  # noqa: E731
    a, b = flat(grads), flat(plain_grads)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


def attention_inputs(queries, tokens):
    rng = np.random.default_rng(0)
    shapes = ((2, n, 3, 16) for n in (queries, tokens, tokens, queries))
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("queries", "tokens", "scale"),
    [(40, 40, None), (7, 40, 0.5), (1100, 1100, 0.5), (9, 1100, None)],
)
def test_attention_on_a_cpu_is_that_of_jax(queries, tokens, scale):
    *qkv, weight = attention_inputs(queries, tokens)

    def of(by):
        def loss(*qkv):
            out = attention.attend(by, *qkv, scale)
            return jnp.sum(out * weight), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)

    (gradients, out), (expected_gradients, expected) = of("cpu"), of("xla")
    np.testing.assert_allclose(out, expected, atol=5e-6)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("tokens", [600, 1100])
def test_no_weights_are_kept_for_the_backward_pass(tokens):
    qkv = attention_inputs(tokens, tokens)[:3]

    def kept(attend):
        pullback = jax.eval_shape(lambda *inputs: jax.vjp(attend, *inputs)[1], *qkv)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    weights = 2 * 3 * tokens * tokens * 4
    assert weights <= kept(jax.nn.dot_product_attention)
    for by in ("cpu", "xla"):
        assert kept(partial(attention.attend, by)) < weights / 5


# --- what is dropped -----------------------------------------------------------------------------


def test_drop_path_drops_whole_clips_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    assert vit.drop_path(x, 0.3, None) is x
    y = np.asarray(vit.drop_path(x, 0.3, jax.random.key(0)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(y.mean(), 1.0, atol=5 * np.sqrt(0.3 / 0.7 / 4000))


def test_drop_path_grows_from_nothing_in_the_first_block():
    # At a rate of almost 1 the second of two blocks is always dropped, the first never.
    task = build()
    blocks = task.model(params_of(task), {}).encoder.blocks
    x = jax.random.normal(jax.random.key(0), (3, 5, task.encoder.width))
    layers = nnx.to_pure_dict(nnx.state(blocks, nnx.Param))
    first = nnx.merge(nnx.graphdef(blocks), jax.tree.map(lambda p: p[:1], layers))
    apply = jax.jit(partial(vit.apply_stack, run=vit.Run(), drop_rate=1 - 1e-6))
    dropped, whole = apply(blocks, x, key=jax.random.key(0)), apply(blocks, x)
    close(dropped, apply(first, x), 5e-6)
    assert np.abs(whole - dropped).max() > 0.1


def test_the_classifier_is_deterministic_without_a_key():
    task = build("finetune", drop_path=0.5, head_dropout=0.5)
    params, calm = params_of(task), build("finetune")

    @partial(jax.jit, static_argnums=0)
    def apply(task, video, key=None):
        return task.model(params, {})(video, task.strategy, key)

    first, again, other = (apply(task, VIDEO, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    close(apply(task, VIDEO), apply(calm, VIDEO), 5e-6)
    # A clip is classified the same in any batch.
    close(apply(task, VIDEO)[:1], apply(task, VIDEO[:1]), 5e-6)


# --- weights and positions -----------------------------------------------------------------------


def test_positions_by_axis():
    table = positions.sincos_3d(Grid(3, 2, 4), 16)
    angles = [p * 10.0 ** -np.array([0, 0.5]) for p in (2, 1, 3)]
    of_token = [part for angle in angles for part in (np.sin(angle), np.cos(angle))]
    of_token = np.concatenate([*of_token, np.zeros(4)])
    np.testing.assert_allclose(table[2 * 8 + 1 * 4 + 3], of_token, atol=1e-6)


def test_initial_weights():
    key, (pretraining, tuning) = jax.random.key(0), map(build, ("pretrain", "finetune"))
    first, tuned = (checkpoint.leaves(jax.jit(t.init)(key)[0]) for t in (pretraining, tuning))
    qkv, fc1 = first["encoder/blocks/attention/qkv/kernel"], "encoder/blocks/mlp/fc1/"
    bound = np.sqrt(6 / (48 + 144))  # Xavier
    assert 0.98 * bound < np.abs(qkv).max() <= bound
    assert not (qkv[0] == qkv[1]).any()  # Each layer has its own.
    embed = {"encoder/embed/kernel": 384, "encoder/embed/bias": 384}
    for name, fan_in in (embed | {"encoder_to_decoder/kernel": 48}).items():
        # PyTorch's default, 1 / sqrt(fan in)
        assert 0.8 < np.abs(first[name]).max() * np.sqrt(fan_in) <= 1 + 1e-6
    assert 0.01 < np.abs(first["mask_token"]).max() <= 0.02
    assert not np.any(first[f"{fc1}bias"])
    np.testing.assert_allclose(np.std(tuned[f"{fc1}kernel"]), 0.02, rtol=0.05)
    np.testing.assert_allclose(np.std(tuned["head/kernel"]), 0.02 * 0.001, rtol=0.1)
    assert not np.any(tuned["head/bias"])

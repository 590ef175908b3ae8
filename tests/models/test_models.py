"""The models: their exact sizes, and that every saving and option leaves the function as it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from mvm import masking, objectives, tasks
from mvm.models import positions, tubelets, vit
from mvm.models.autoencoder import Autoencoder, Decoder
from mvm.models.classifier import Classifier
from mvm.models.encoder import Encoder
from mvm.optim import path_of
from mvm.runtime import checkpoint
from mvm.types import Grid, Mask, Tubelet

TUBELET = Tubelet(2, 8, 8)
ENCODER, DECODER = vit.Size(32, 2, 4), vit.Size(24, 1, 3)
GRID = Grid(2, 4, 4)


def video_of(batch=2, frames=4, height=32, width=32, seed=0):
    shape = (batch, frames, height, width, 3)
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def filled(make, seed=0):
    """Structure of a model, and weights large enough for every path in it to matter."""
    model, rng = nnx.eval_shape(make), np.random.default_rng(seed)

    def draw(path, leaf):
        mean = 1.0 if "norm" in path_of(path) and path_of(path).endswith("scale") else 0.0
        return jnp.asarray(mean + 0.15 * rng.normal(size=leaf.shape), leaf.dtype)

    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return nnx.graphdef(model), jax.tree_util.tree_map_with_path(draw, params)


def autoencoder(run=vit.Run()):  # noqa: B008
    def make():
        rngs = nnx.Rngs(0)
        encoder = Encoder(ENCODER, TUBELET, "xavier", run, final_norm=True, rngs=rngs)
        return Autoencoder(encoder, DECODER, rngs=rngs)

    return filled(make)


def classifier(drop_rate=0.0, **options):
    def make():
        rngs = nnx.Rngs(0)
        encoder = Encoder(ENCODER, TUBELET, "normal", vit.Run(), drop_rate=drop_rate, rngs=rngs)
        return Classifier(encoder, 5, rngs=rngs, **options)

    return filled(make)


@pytest.fixture(scope="module")
def tiny():
    """A float32 autoencoder."""
    return autoencoder()


def fixed_mask():
    """Eight visible tokens and eight targets per clip."""
    rng = np.random.default_rng(2)
    index = np.stack([rng.permutation(GRID.n)[:16] for _ in range(2)])
    visible, target = np.sort(index[:, :8]), np.sort(index[:, 8:])
    return Mask(jnp.asarray(visible), jnp.asarray(target), jnp.ones((2, 8)))


def loss_of(graphdef, params, mask):
    model = nnx.merge(graphdef, params)
    pixels, grid = tubelets.split(video_of(), TUBELET)
    target = tubelets.targets(tubelets.gather(pixels, mask.target))
    return objectives.over_targets(
        objectives.token_error(model.reconstruct(pixels, grid, mask), target), mask.weight
    )


@pytest.fixture(scope="module")
def grad(tiny):
    """`(params, mask) -> (loss, gradients)` of the plain way to compute."""
    return jax.jit(jax.value_and_grad(partial(loss_of, tiny[0])))


@pytest.fixture(scope="module")
def plain(tiny, grad):
    return grad(tiny[1], fixed_mask())


def close(actual, expected, tolerance=1e-6):
    """Largest difference as a fraction of the largest entry, leaf by leaf."""

    def one(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1.0))

    jax.tree.map(one, actual, expected)


# --- exact savings -------------------------------------------------------------------------------


def test_a_decoder_and_its_gradient_equal_those_of_all_tokens():
    size = vit.Size(24, 2, 3)
    graphdef, params = filled(lambda: Decoder(size, 12, vit.Run(), rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 10, size.width))

    def saving(params, x):
        return nnx.merge(graphdef, params)(x, 6)

    def plainly(params, x):
        decoder = nnx.merge(graphdef, params)
        y = decoder.last(vit.apply_stack(decoder.blocks, x, vit.Run()))
        return decoder.head(decoder.norm(y[:, 4:]))

    def of(function):
        def loss(*args):
            out = function(*args)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)

    close(of(saving), of(plainly), 2e-6)


def test_embedding_the_visible_is_embedding_all_and_picking(tiny):
    encoder, mask = nnx.merge(*tiny).encoder, fixed_mask()
    pixels, grid = tubelets.split(video_of(), TUBELET)

    @jax.jit
    def both(pixels):
        some = encoder(tubelets.gather(pixels, mask.visible), mask.visible, grid)
        every = encoder.embed(tubelets.standardise(pixels))
        every = encoder.positions(every, grid, jnp.arange(grid.n))
        x = vit.apply_stack(encoder.blocks, tubelets.gather(every, mask.visible), vit.Run())
        return some, encoder.norm(x)

    close(*both(pixels))


def test_choosing_tokens_by_motion_adds_nothing_to_the_gradient(tiny, grad):
    graphdef, params = tiny
    strategy = masking.build("everest", GRID, keep_ratio=0.5, mask_ratio=0.75)

    def drawn(params):
        out = nnx.merge(graphdef, params)(jax.random.key(3), video_of(), strategy)
        return objectives.over_targets(
            objectives.token_error(out.predicted, out.target), out.mask.weight
        ), out.mask

    (loss, mask), grads = jax.jit(jax.value_and_grad(drawn, has_aux=True))(params)
    close((loss, grads), grad(params, mask))


# --- ways to compute -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack():
    """Two blocks: their weights, and a function that gives output and gradients by a `Run`."""
    run = vit.Run()
    graphdef, params = filled(lambda: vit.stack(2, ENCODER, "xavier", run, nnx.Rngs(0)))

    def of(run):
        def loss(params, x):
            y = vit.apply_stack(nnx.merge(graphdef, params), x, run)
            return jnp.sum(jnp.sin(y)), y

        x = jax.random.normal(jax.random.key(0), (2, 5, ENCODER.width))
        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)

    return of, of(run)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_nothing(stack, remat):
    of, expected = stack
    close(of(vit.Run(remat=remat)), expected)


def test_bfloat16_keeps_float32_weights_and_nearly_the_loss(tiny, plain):
    graphdef, params = autoencoder(vit.Run(dtype=jnp.bfloat16))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    grad = jax.jit(jax.value_and_grad(partial(loss_of, graphdef)))
    loss, grads = grad(tiny[1], fixed_mask())
    assert loss.dtype == jnp.float32
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
    assert loss != plain[0]
    np.testing.assert_allclose(loss, plain[0], rtol=2e-2)
    flat = lambda tree: np.concatenate([g.ravel() for g in jax.tree.leaves(tree)])  # noqa: E731
    a, b = flat(grads), flat(plain[1])
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


# --- drop path -----------------------------------------------------------------------------------


def test_drop_path_drops_whole_clips_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    assert vit.drop_path(x, 0.3, None) is x
    y = np.asarray(vit.drop_path(x, 0.3, jax.random.key(0)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(y.mean(), 1.0, atol=5 * np.sqrt(0.3 / 0.7 / 4000))


def test_drop_path_grows_from_nothing_in_the_first_block(tiny):
    # At a rate of almost 1 the second of two blocks is always dropped, the first never.
    blocks = nnx.merge(*tiny).encoder.blocks
    x = jax.random.normal(jax.random.key(0), (3, 5, ENCODER.width))
    layers = nnx.to_pure_dict(nnx.state(blocks, nnx.Param))
    first = nnx.merge(nnx.graphdef(blocks), jax.tree.map(lambda p: p[:1], layers))
    apply = jax.jit(partial(vit.apply_stack, run=vit.Run(), drop_rate=1 - 1e-6))
    dropped, whole = apply(blocks, x, key=jax.random.key(0)), apply(blocks, x)
    close(dropped, apply(first, x))
    assert np.abs(whole - dropped).max() > 0.1


# --- clips and classifier ------------------------------------------------------------------------


def test_the_classifier_is_deterministic_without_a_key():
    graphdef, params = classifier(drop_rate=0.5, head_dropout=0.5)
    strategy = masking.build("everest", GRID, keep_ratio=0.6, mask_ratio=0.4)
    apply = jax.jit(lambda video, key=None: nnx.merge(graphdef, params)(video, strategy, key))
    first, again, other = (apply(video_of(), jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    calm = nnx.merge(classifier()[0], params)
    close(apply(video_of()), jax.jit(lambda video: calm(video, strategy))(video_of()))
    # A clip is classified the same in any batch.
    close(apply(video_of())[:1], apply(video_of()[:1]))


# --- weights and positions -----------------------------------------------------------------------


def initial(names, **changes):
    """The leaves of these names; the compiler leaves out all others."""
    c = common.get_config()
    c.model.update(width=32, depth=2, heads=4, decoder_width=24, decoder_heads=3, tubelet=TUBELET)
    c.update(changes)
    init = tasks.build(c).init
    leaves = jax.jit(lambda key: {n: checkpoint.leaves(init(key)[0])[n] for n in names})
    return leaves(jax.random.key(0))


def test_positions_by_axis():
    table = positions.sincos_3d(Grid(3, 2, 4), 16)
    angles = [p * 10.0 ** -np.array([0, 0.5]) for p in (2, 1, 3)]
    of_token = [part for angle in angles for part in (np.sin(angle), np.cos(angle))]
    of_token = np.concatenate([*of_token, np.zeros(4)])
    np.testing.assert_allclose(table[2 * 8 + 1 * 4 + 3], of_token, atol=1e-6)


def test_initial_weights():
    qkv, fc1 = "encoder/blocks/attention/qkv/kernel", "encoder/blocks/mlp/fc1/"
    embed = "encoder/embed/kernel", "encoder/embed/bias", "encoder_to_decoder/kernel"
    found = initial([qkv, f"{fc1}bias", *embed, "mask_token"])
    bound = np.sqrt(6 / (32 + 96))  # Xavier
    assert 0.98 * bound < np.abs(found[qkv]).max() <= bound
    assert not (found[qkv][0] == found[qkv][1]).any()  # Each layer has its own.
    for name, fan_in in zip(embed, (384, 384, 32)):  # PyTorch's default, 1 / sqrt(fan in)
        assert 0.8 < np.abs(found[name]).max() * np.sqrt(fan_in) <= 1 + 1e-6
    assert 0.01 < np.abs(found["mask_token"]).max() <= 0.02
    assert not np.any(found[f"{fc1}bias"])
    tuned = {"task": "finetune", "mask": {"name": ""}, "data": {"num_classes": 50}}
    names = [f"{fc1}kernel", "head/kernel", "head/bias"]
    found = initial(names, **tuned)
    np.testing.assert_allclose(np.std(found[names[0]]), 0.02, rtol=0.05)
    np.testing.assert_allclose(np.std(found["head/kernel"]), 0.02 * 0.001, rtol=0.1)
    assert not np.any(found["head/bias"])

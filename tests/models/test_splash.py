"""The splash kernel, followed step by step on a CPU, is the function of jax.nn, and so are its
gradients; on a mesh each device attends to its own clips."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvm.models import splash
from mvm.runtime import sharding

OURS = partial(splash.attend, interpret=True)


def _inputs(clips, queries, tokens, width, dtype="float32"):
    """Queries, keys, values, and what the result is weighed with."""
    rng = np.random.default_rng(0)
    shapes = ((clips, n, 2, width) for n in (queries, tokens, tokens, queries))
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def _value(attend, *inputs):
    """The result and the gradients."""
    out, back = jax.vjp(lambda *qkv: attend(*qkv), *inputs[:3])
    return out, *back(inputs[3])


@pytest.mark.parametrize(
    ("queries", "tokens", "width", "scale", "dtype"),
    [
        pytest.param(45, 301, 64, None, "float32", id="padding"),
        pytest.param(45, 301, 80, None, "bfloat16", id="bfloat16"),
        pytest.param(700, 2100, 88, 0.5, "float32", id="several", marks=pytest.mark.slow),
    ],
)
def test_it_is_the_function_of_jax(queries, tokens, width, scale, dtype):
    inputs = _inputs(1, queries, tokens, width, dtype)
    exact = (x.astype(jnp.float32) for x in inputs)
    got = jax.jit(partial(_value, partial(OURS, scale=scale)))(*inputs)
    want = jax.jit(partial(_value, partial(jax.nn.dot_product_attention, scale=scale)))(*exact)
    for ours, true in zip(got, want, strict=True):
        assert (ours.dtype, ours.shape) == (inputs[0].dtype, true.shape)
        far = jnp.linalg.norm(ours.astype(jnp.float32) - true) / jnp.linalg.norm(true)
        assert far < (0.01 if dtype == "bfloat16" else 1e-5)


def test_each_device_attends_to_its_own_clips():
    inputs = _inputs(8, 5, 9, 64)
    mesh = sharding.make_mesh(2)
    with jax.set_mesh(mesh):
        split = jax.device_put(inputs, sharding.of_batch(mesh))
        program = jax.jit(partial(_value, OURS)).lower(*split).compile()
        got = program(*split)
    assert not any(name in program.as_text() for name in ("all-gather", "all-reduce", "all-to-all"))
    for ours, want in zip(
        got, jax.jit(partial(_value, jax.nn.dot_product_attention))(*inputs), strict=True
    ):
        assert ours.sharding.is_equivalent_to(sharding.of_batch(mesh), 4)
        np.testing.assert_allclose(ours, want, atol=2e-5)

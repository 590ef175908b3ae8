"""Every way of attending is the same function as that of jax.nn, and so are its gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvm.models import attention


def _inputs(queries, tokens):
    rng = np.random.default_rng(0)
    shapes = ((2, queries, 3, 16), (2, tokens, 3, 16), (2, tokens, 3, 16))
    q, k, v = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize(
    ("queries", "tokens", "scale"),
    [(40, 40, None), (7, 40, 0.5), (1100, 1100, 0.5), (9, 1100, None)],
)
def test_on_a_cpu(queries, tokens, scale):
    qkv = _inputs(queries, tokens)
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(qkv[0].shape), jnp.float32)

    def value(by):
        def loss(*qkv):
            out = attention.attend(by, *qkv, scale)
            return jnp.sum(out * weight), out

        gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
        return out, gradients

    (out, gradients), (want, want_gradients) = value("cpu"), value("xla")
    np.testing.assert_allclose(out, want, atol=5e-6)
    for got, expected in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("tokens", [600, 1100])
def test_no_weights_are_kept_for_the_backward_pass(tokens):
    """The weights of 3 heads and 2 clips are 9 or 29 MB; what is kept beside inputs is far less."""
    qkv = _inputs(tokens, tokens)

    def kept(attend):
        pullback = jax.eval_shape(lambda *inputs: jax.vjp(attend, *inputs)[1], *qkv)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    weights = 2 * 3 * tokens * tokens * 4
    assert weights <= kept(jax.nn.dot_product_attention)
    for by in ("cpu", "xla"):
        assert kept(partial(attention.attend, by)) < weights / 5

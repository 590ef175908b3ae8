"""The same numbers as the released VideoMAE and EVEREST, from their own weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import Golden, close, mask_of

from mvm import objectives, optim
from mvm.masking import adamae, everest
from mvm.models import tubelets


def reconstruction_loss(params, golden, video, mask):
    """With it outputs and targets."""
    tokens, grid = tubelets.split(jnp.asarray(video), golden.tubelet)
    out = golden.model(params).reconstruct(tokens, grid, mask)
    target = tubelets.targets(tubelets.gather(tokens, mask.target))
    return objectives.over_targets(objectives.token_error(out, target), mask.weight), (out, target)


def pretrain(golden, video, mask):
    """Outputs, targets, loss and gradients under official names."""
    grad = jax.value_and_grad(reconstruction_loss, has_aux=True)
    (loss, rest), grads = jax.jit(lambda params: grad(params, golden, video, mask))(golden.params)
    return *rest, loss, golden.official(grads)


def check_gradients(golden, grads, prefix, tolerance=1e-5):
    norms = np.array([np.linalg.norm(grads[name]) for name in golden.names])
    close(norms, golden[f"{prefix}grad_norms"], tolerance)
    keys = [k for k in golden.data if k.startswith(f"{prefix}grad/")]
    assert keys
    for key in keys:
        name = key.removeprefix(f"{prefix}grad/")
        close(grads[name].reshape(golden[key].shape), golden[key], tolerance)


GIANT = "videomaev2_pretrain_giant_cos"


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        *(("videomae_pretrain", ""), ("videomaev2_pretrain", ""), (GIANT, "std/")),
        pytest.param(GIANT, "cos/", marks=pytest.mark.slow),
    ],
)
def test_pretraining(shared, name, prefix):
    cosine = prefix == "cos/"
    golden = Golden(shared, name, cosine)
    if name == "videomae_pretrain":
        assert not golden.report.unused
        video, mask = golden.bytes("video_u8"), mask_of(golden["mask"])
    else:
        video = golden.video("video")
        mask = mask_of(golden[f"{prefix}encoder_mask"], ~golden[f"{prefix}decoder_mask"])
    if name == GIANT:
        golden.names = list(map(str, golden[f"param_names_{prefix[:3]}"]))
    out, target, loss, grads = pretrain(golden, video, mask)
    # Cosine attention amplifies rounding: float32 and float64 of the released code differ by 2e-6.
    close(out, golden[f"{prefix}outputs"], 3e-5 if cosine else 1e-5)
    close(target, golden["std/labels" if name == GIANT else "labels"])
    close(loss, golden[f"{prefix}loss"], 2e-6)
    check_gradients(golden, grads, prefix, 1e-4 if cosine else 1e-5)


@pytest.mark.slow
def test_adamae_pretraining(shared):
    golden = Golden(shared, "adamae_pretrain")
    assert not golden.report.unused
    pixels, grid = tubelets.split(jnp.asarray(golden.video("video")), golden.tubelet)
    mask = mask_of(golden["mask"])

    def losses_of(params):
        """Both losses, dropout off, and those of plain pixels, sampler, outputs and errors."""
        model = golden.model(params)
        scores = model.score(None, pixels)
        out = model.reconstruct(pixels, grid, mask)
        targets = tubelets.gather(pixels, mask.target)

        def of(kind):
            target = tubelets.targets(targets, tubelets.Targets(kind))
            error = objectives.token_error(out, target)
            sampler = adamae.AdaMae(grid).loss(scores, error, mask)
            return jnp.stack([error.mean(), sampler]), error

        (both, error), (plain, _) = of("normalised"), of("pixels")
        return both, (plain, scores, out, error)

    @jax.jit
    def all_of(params):
        losses, pull, rest = jax.vjp(losses_of, params, has_aux=True)
        return losses, rest, jax.vmap(pull)(jnp.eye(2))[0]

    losses, (plain, scores, out, error), both = all_of(golden.params)
    grads = [jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(2)]
    close(scores, golden["log_probs"])
    close(out, golden["outputs"])
    close(error, golden["mask_l_r"])
    close(losses[0], golden["m_l_r"], 2e-6)
    close(losses[1], golden["m_l_s"])
    # What neither moves: reconstruction no sampler, sampling that and the patch embedding alone.
    for key, official in zip(("rec", "samp"), map(golden.official, grads)):
        norms = np.array([np.linalg.norm(official[name]) for name in golden.names])
        unused = golden[f"{key}_unused"]
        assert not norms[unused].any()
        close(norms, np.where(unused, 0.0, golden[f"{key}_grad_norms"]), 2e-5)
        for name in (k for k in golden.data if k.startswith(f"grad_{key}/")):
            mine = official[name.removeprefix(f"grad_{key}/")].reshape(golden[name].shape)
            close(mine, golden[name], 2e-5)
    close(plain[0], golden["unnorm/m_l_r"], 2e-6)
    close(plain[1], golden["unnorm/m_l_s"])


@pytest.mark.parametrize("case", ["motion", "static"])
def test_everest_pretraining(shared, case):
    golden = Golden(shared, "everest_pretrain")
    video = golden.bytes(f"{case}/video_u8")
    embed = golden.model().encoder.embed
    pixels, grid = tubelets.split(jnp.asarray(video), golden.tubelet)
    scores = jax.jit(lambda p: everest.motion(embed(tubelets.standardise(p)), grid))(pixels)
    close(scores, golden[f"{case}/importance"])
    mask = everest.partition(scores, jnp.asarray(golden[f"{case}/noise"]), 12)
    np.testing.assert_array_equal(mask.visible, np.sort(golden[f"{case}/ids_keep"]))
    np.testing.assert_array_equal(mask.target, np.sort(golden[f"{case}/ids_recon"]))
    out, target, loss, grads = pretrain(golden, video, mask)
    close(out, golden[f"{case}/outputs"])
    close(target, golden[f"{case}/labels"])
    close(loss, golden[f"{case}/loss"], 2e-6)
    check_gradients(golden, grads, f"{case}/")


def finetune(golden, video, label, strategy=None):
    """Logits, loss and gradients of a classifier."""

    def loss_of(params):
        logits = golden.model(params)(jnp.asarray(video), strategy)
        return optax.softmax_cross_entropy(logits, label).mean(), logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(golden.params)
    return logits, loss, golden.official(grads)


@pytest.mark.parametrize("cosine", [False, True])
def test_videomaev2_finetuning(shared, cosine):
    golden = Golden(shared, "videomaev2_finetune", cosine)
    label = jax.nn.one_hot(golden["target"], 7)
    logits, loss, grads = finetune(golden, golden.video("video"), label)
    close(logits, golden["logits_cos_attn" if cosine else "logits"], 3e-5 if cosine else 1e-5)
    if not cosine:
        close(loss, golden["loss"], 2e-6)
        check_gradients(golden, grads, "")


def test_videomae_finetuning(shared):
    golden = Golden(shared, "videomae_finetune")
    video, label = golden.bytes("video_u8"), jax.nn.one_hot(golden["target"], 7)
    logits, _, grads = finetune(golden, video, label)
    close(logits, golden["logits"])
    check_gradients(golden, grads, "")
    smooth = optax.smooth_labels(label, 0.1)
    for labels, name in (
        (label, "loss_ce"),
        (smooth, "loss_label_smoothing_0p1"),
        (golden["soft_target"], "loss_soft_target"),
    ):
        loss = optax.softmax_cross_entropy(logits, jnp.asarray(labels)).mean()
        close(loss, golden[name], 2e-6)


def test_everest_finetuning(shared):
    golden = Golden(shared, "everest_finetune")
    video, label = golden.bytes("video_u8"), jax.nn.one_hot(golden["target"], 7)
    grid = golden.tubelet.grid(*video.shape[1:4])
    strategy = everest.Everest(grid, keep_ratio=0.6, mask_ratio=0.4)
    logits, loss, grads = finetune(golden, video, label, strategy)
    close(logits, golden["mcm/logits"])
    close(loss, golden["mcm/loss"], 2e-6)
    check_gradients(golden, grads, "mcm/")


def six_updates(golden, grad, clip_norm=0.0):
    """Losses, norms and parameters as the released engine makes them; `grad(params, i)`."""
    opt = json.loads(str(golden["config"]))["opt"]
    assert opt["betas"][0] == 0.9
    # A golden run stops after the first epoch of its schedule.
    steps = opt["epochs"] * opt["niter_per_ep"]
    schedule = optim.Schedule(opt["base_lr"], opt["min_lr"], opt["warmup_steps"], steps)
    tx = optim.adamw(
        schedule,
        b2=opt["betas"][1],
        weight_decay=opt["weight_decay"],
        layer_decay=opt.get("layer_decay", 1.0),
        depth=golden.kwargs.get("depth", 0),
        clip_norm=clip_norm,
    )
    update, rows = jax.jit(tx.update), []
    params, state = golden.params, tx.init(golden.params)
    for i in range(6):
        loss, grads = grad(params, i)
        rows.append((loss, optax.tree.norm(grads)))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return *zip(*rows), params


def check_final(golden, params):
    after = golden.official(params)
    for key in (k for k in golden.data if k.startswith("final/")):
        mine = after[key.removeprefix("final/")].reshape(golden[key].shape)
        np.testing.assert_allclose(mine, golden[key], rtol=0, atol=5e-6)
    moved = [np.linalg.norm(after[n].ravel() - golden.weights[n].ravel()) for n in golden.names]
    close(moved, golden["delta_norm"], 1e-4)


@pytest.mark.slow
def test_adamw_of_pretraining(shared):
    golden = Golden(shared, "optim_videomae_pretrain")
    video, masks = golden.video("video"), [mask_of(hidden) for hidden in golden["masks"]]
    masks = jax.tree.map(lambda *m: jnp.stack(m), *masks)

    @jax.jit
    @jax.value_and_grad
    def grad(params, i):
        mask = jax.tree.map(lambda m: m[i], masks)
        return reconstruction_loss(params, golden, video, mask)[0]

    losses, norms, params = six_updates(golden, grad)
    close(losses, golden["loss"], 5e-6)
    close(norms, golden["grad_norm"], 2e-5)
    check_final(golden, params)


@pytest.mark.slow
def test_adamw_with_layer_decay(shared):
    """With and without clipping."""
    golden = Golden(shared, "optim_videomae_finetune")
    video, label = jnp.asarray(golden.bytes("video_u8")), jax.nn.one_hot(golden["target"], 7)

    @jax.jit
    @jax.value_and_grad
    def grad(params, i):
        return optax.softmax_cross_entropy(golden.model(params)(video), label).mean()

    for clip, prefix, before in ((0.5, "clip0p5_", "_before_clip"), (0.0, "", "")):
        losses, norms, params = six_updates(golden, grad, clip)
        close(losses, golden[f"{prefix}loss"], 5e-6)
        close(norms, golden[f"{prefix}grad_norm{before}"], 2e-5)
        close(grad(params, 6)[0], golden[f"{prefix}loss_after"], 2e-5)
    check_final(golden, params)

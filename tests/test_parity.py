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


def pretrain(golden, pixels, mask):
    """Outputs, targets, loss and gradients under official names."""
    pixels = jnp.asarray(pixels)

    def loss_of(params):
        model = golden.model(params)
        tokens, grid = tubelets.split(pixels, golden.tubelet)
        out = model.reconstruct(tokens, grid, mask)
        target = tubelets.targets(tubelets.gather(tokens, mask.target))
        loss = objectives.over_targets(objectives.token_error(out, target), mask.weight)
        return loss, (out, target)

    (loss, (out, target)), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(golden.params)
    return out, target, loss, golden.official(grads)


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
        *[
            ("videomae_pretrain", ""),
            ("videomaev2_pretrain", ""),
            ("videomaev2_pretrain", "nodec/"),
        ],
        *[(GIANT, "std/"), pytest.param(GIANT, "cos/", marks=pytest.mark.slow)],
    ],
)
def test_pretraining(shared, name, prefix):
    cosine = prefix == "cos/"
    golden = Golden(shared, name, cosine)
    assert not golden.report.missing
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
    if f"{prefix}cal_loss_mask" in golden.data:
        np.testing.assert_array_equal(mask.weight, golden[f"{prefix}cal_loss_mask"])
    if prefix == "nodec/":
        close(out[:, :8], golden["nodec/outputs_first8"])
    else:
        close(out, golden[f"{prefix}outputs"], 3e-5 if cosine else 1e-5)
        close(target, golden["std/labels" if name == GIANT else "labels"])
    close(loss, golden[f"{prefix}loss"], 2e-6)
    if name == "videomae_pretrain":
        pixels, _ = tubelets.split(jnp.asarray(video), golden.tubelet)
        pixels = tubelets.targets(tubelets.gather(pixels, mask.target), tubelets.Targets("pixels"))
        close(objectives.token_error(out, pixels).mean(), golden["loss_unnorm"], 2e-6)
    check_gradients(golden, grads, prefix, 1e-4 if cosine else 1e-5)


@pytest.mark.slow
def test_adamae_pretraining(shared):
    golden = Golden(shared, "adamae_pretrain")
    assert not golden.report.missing
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
    close(jnp.exp(scores), golden["p_x"])
    close(scores, golden["log_probs"])
    close(out, golden["outputs"])
    close(error, golden["mask_l_r"])
    close(losses[0], golden["m_l_r"], 2e-6)
    close(losses[1], golden["m_l_s"])
    close(losses.sum(), golden["loss"], 2e-6)
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
    model = golden.model()
    pixels, grid = tubelets.split(jnp.asarray(video), golden.tubelet)
    scores = jax.jit(lambda p: everest.motion(model.encoder.embed(tubelets.standardise(p)), grid))(
        pixels
    )
    close(scores, golden[f"{case}/importance"])
    mask = everest.partition(scores, jnp.asarray(golden[f"{case}/noise"]), 12)
    np.testing.assert_array_equal(mask.visible, np.sort(golden[f"{case}/ids_keep"]))
    np.testing.assert_array_equal(mask.target, np.sort(golden[f"{case}/ids_recon"]))
    out, target, loss, grads = pretrain(golden, video, mask)
    close(out, golden[f"{case}/outputs"])
    close(target, golden[f"{case}/labels"])
    close(loss, golden[f"{case}/loss"], 2e-6)
    check_gradients(golden, grads, f"{case}/")


def finetune(golden, video, index, label):
    """Logits, loss and gradients of a classifier that sees the tokens `index` ([B, K] or None)."""

    def loss_of(params):
        model = golden.model(params)
        pixels, grid = tubelets.split(jnp.asarray(video), golden.tubelet)
        where = jnp.arange(grid.n) if index is None else index
        seen = pixels if index is None else tubelets.gather(pixels, index)
        x = model.encoder(seen, where, grid).mean(axis=1)
        logits = model.head(model.fc_norm(x))
        return optax.softmax_cross_entropy(logits, label).mean(), logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(golden.params)
    return logits, loss, golden.official(grads)


@pytest.mark.parametrize("cosine", [False, True])
def test_videomaev2_finetuning(shared, cosine):
    golden = Golden(shared, "videomaev2_finetune", cosine)
    assert not golden.report.missing
    label = jax.nn.one_hot(golden["target"], 7)
    logits, loss, grads = finetune(golden, golden.video("video"), None, label)
    close(logits, golden["logits_cos_attn" if cosine else "logits"], 3e-5 if cosine else 1e-5)
    if not cosine:
        close(loss, golden["loss"], 2e-6)
        check_gradients(golden, grads, "")


def test_videomae_finetuning(shared):
    golden = Golden(shared, "videomae_finetune")
    video, label = golden.bytes("video_u8"), jax.nn.one_hot(golden["target"], 7)
    logits, _, grads = finetune(golden, video, None, label)
    close(logits, golden["logits"])
    close(jax.jit(lambda p, v: golden.model(p)(v))(golden.params, video), golden["logits_eval"])
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
    model = golden.model()
    pixels, grid = tubelets.split(jnp.asarray(video), golden.tubelet)
    scores = everest.motion(model.encoder.embed(tubelets.standardise(pixels)), grid)
    close(scores, golden["mcm/importance"])
    # Token selection of fine-tuning: everything selected is visible, nothing is a target.
    strategy = everest.Everest(grid, keep_ratio=0.6, mask_ratio=0.4)
    mask = strategy.sample(jax.random.key(0), pixels, scores)
    assert mask.target.shape == (3, 0)
    np.testing.assert_array_equal(mask.visible, np.sort(golden["mcm/ids_keep"]))
    logits, loss, grads = finetune(golden, video, mask.visible, label)
    close(logits, golden["mcm/logits"])
    close(loss, golden["mcm/loss"], 2e-6)
    check_gradients(golden, grads, "mcm/")
    logits, loss, grads = finetune(golden, video, None, label)
    close(logits, golden["full/logits"])
    check_gradients(golden, grads, "full/")


def six_updates(golden, grad, clip_norm=0.0):
    """Losses, norms and parameters as the released engine makes them; `grad(params, i)`."""
    opt = json.loads(str(golden["config"]))["opt"]
    assert opt["betas"][0] == 0.9
    # A golden run stops after the first epoch of its schedule.
    steps = opt["epochs"] * opt["niter_per_ep"]
    schedule = optim.Schedule(opt["base_lr"], opt["min_lr"], opt["warmup_steps"], steps)
    close([float(schedule(i)) for i in range(6)], golden["lr_schedule"], 1e-6)
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
    pixels, grid = tubelets.split(jnp.asarray(golden.video("video")), golden.tubelet)
    masks = jax.tree.map(lambda *m: jnp.stack(m), *(mask_of(m) for m in golden["masks"]))

    @jax.jit
    @jax.value_and_grad
    def grad(params, i):
        mask = jax.tree.map(lambda m: m[i], masks)
        out = golden.model(params).reconstruct(pixels, grid, mask)
        target = tubelets.targets(tubelets.gather(pixels, mask.target))
        return objectives.over_targets(objectives.token_error(out, target), mask.weight)

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

"""Distillation: the loss by hand, the teacher's weights from every form, and a run without them."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from models_on_disk import configure, random_params, refused, write_run
from models_on_disk import video as random_video
from scipy.special import softmax

import mvm
from configs import common
from mvm import convert as command
from mvm import initial, sweep, tasks
from mvm.data import Classes
from mvm.runtime import checkpoint

CLIPS = {"num_frames": 4, "image_size": 16}
THEIRS = {"width": 32, "depth": 1, "heads": 2, "decoder_heads": 2, "tubelet": (2, 4, 4)}
"""The teacher's model: of another size and patch."""
TOLD = {"teacher_model": {**THEIRS, "size": "Ti"}, "teacher_mask": {"name": ""}}


def student(**options):
    model = {"width": 24, "depth": 1, "heads": 2, "drop_path": 0.0}
    c = configure("videomaev2_k710_distill", "smoke", data=CLIPS, model=model)
    c.options = common.Config({"teacher": "", "temperature": 3.0, **options})
    return c


def teacher_config(num_classes=8):
    data = CLIPS | {"num_classes": num_classes}
    return configure("videomae_k400", "finetune,smoke", data=data, model=THEIRS)


def batch_of():
    batch = {"video": random_video(8, 4, 16, 16), "label": np.arange(8)}
    return batch | {"lam": np.full(8, 0.6, np.float32), "box": np.zeros((8, 4), np.int32)}


def test_a_loss_and_its_gradient_by_hand():
    key, batch, scored = jax.random.key(3), batch_of(), student()
    scored.evaluate = True
    theirs, alone = tasks.build(teacher_config()), tasks.build(scored)
    task = tasks.build(student(**TOLD, squared="yes", label_weight=0.5))
    params, frozen = task.parted(random_params(task.abstract))

    @jax.jit
    def run(params, frozen):
        video, label = task.augmented(jax.random.split(key)[0], batch)
        logits = alone.model(params, {})(video), theirs.model(frozen["teacher"], {})(video)
        return logits, label, jax.grad(task.loss, has_aux=True)(params, frozen, key, batch)

    (s, t), label, (grads, metrics) = jax.device_get(run(params, frozen))
    soft, mine, hard = softmax(t / 3.0, -1), softmax(s / 3.0, -1), np.asarray(label)
    kl = np.mean(np.sum(soft * (np.log(soft) - np.log(mine)), -1))
    ce = -np.mean(np.sum(hard * np.log(softmax(s, -1)), -1))
    np.testing.assert_allclose(metrics["loss_teacher"], 9.0 * kl, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_label"], ce, rtol=1e-4)
    bias = 9.0 * (mine - soft) / 3.0 + 0.5 * (softmax(s, -1) - hard)
    np.testing.assert_allclose(grads["head"]["bias"], bias.mean(0), atol=1e-5)
    hits = [100.0 * np.mean(x.argmax(-1) == batch["label"]) for x in (s, t)]
    assert [metrics["accuracy"], metrics["accuracy_teacher"]] == pytest.approx(hits)


def test_features_are_compared_by_their_angle():
    task, key, batch = tasks.build(student(**TOLD, match="features")), jax.random.key(3), batch_of()
    params, frozen = task.parted(random_params(task.abstract))

    @jax.jit
    def run(params, frozen):
        video, _ = task.augmented(jax.random.split(key)[0], batch)
        model = task.model(params, frozen)
        both = [m.pool(m.features(video)) for m in (model, model.teacher)]
        return both, task.loss(params, frozen, key, batch)[0]

    (s, t), value = jax.device_get(run(params, frozen))
    s = s @ params["to_teacher"]["kernel"] + params["to_teacher"]["bias"]
    cosine = np.sum(s * t, -1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
    np.testing.assert_allclose(value, np.mean(2 - 2 * cosine), rtol=1e-4)


def test_teachers_of_every_form_and_those_that_cannot_be(tmp_path, caplog):
    weights = write_run(tmp_path / "run", teacher_config())
    command.translate(tmp_path / "run", tmp_path / "hub", "huggingface")
    like = tasks.build(student(**TOLD)).abstract
    for form in ("run", "run/checkpoints/2", "hub"):
        told, _ = initial.resolved(student(teacher=str(tmp_path / form)), tmp_path / "new")
        task = tasks.build(told).teacher
        assert (task.encoder.width, task.encoder.depth, task.encoder.heads) == (32, 1, 2)
        assert (task.tubelet, task.strategy) == ((2, 4, 4), None)
        found = initial.of_run(told, like, None, Classes())
        jax.tree.map(np.testing.assert_array_equal, found, {"teacher": weights})
    # Its head is put into the order of the data's classes.
    (tmp_path / "run" / "classes.txt").write_text("\n".join("hgfedcba"))
    config, ours = student(teacher=str(tmp_path / "run")), Classes(tuple("abcdefgh"), "train")
    loaded = initial.of_run(config, like, None, ours)["teacher"]
    np.testing.assert_array_equal(loaded["head"]["bias"], weights["head"]["bias"][::-1])
    write_run(tmp_path / "twelve", teacher_config(12))
    for name, said in (
        ("twelve", "options.teacher=.*twelve is of task finetune with 12 classes; .* data's 8"),
        ("absent", "options.teacher=.*absent does not exist"),
    ):
        refused(said, initial.resolved, student(teacher=str(tmp_path / name)), tmp_path / "new")
    assert initial.resolved(student(), tmp_path / "new")[0] == student()
    assert initial.of_run(student(), like, None, Classes()) == {}
    assert "the teacher has random weights" in caplog.text


@pytest.mark.slow
def test_a_run_resumes_without_its_teachers_files(shapes, tmp_path, no_figures):
    weights = write_run(tmp_path / "teacher", teacher_config())
    config = student(teacher=str(tmp_path / "teacher"))
    given = tiny.configure(shapes, "finetune,smoke")
    config.data.update(train=given.data.train, val="", test="")
    config.synthetic = given.synthetic
    config.train.update(given.train.to_dict() | {"steps": 4})
    whole = sweep.run(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "teacher")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert sweep.run(config, tmp_path / "run") == whole
    written = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert written["teacher_model"]["tubelet"] == [2, 4, 4]
    like = {"encoder": tasks.build(student()).abstract["encoder"], "teacher": weights}
    loaded, *_ = checkpoint.load_params(tmp_path / "run", like)
    jax.tree.map(np.testing.assert_array_equal, loaded["teacher"], weights)
    # What is loaded, scored and converted is the student.
    model = mvm.load(tmp_path / "run")
    assert set(model.network.params) == {"encoder", "fc_norm", "head"}
    command.translate(tmp_path / "run", tmp_path / "a.safetensors")
    scored = config.copy_and_resolve_references()
    scored.evaluate, scored.init_from = True, str(tmp_path / "run")
    scored.data.test = given.data.test
    assert sweep.run(scored, tmp_path / "scored")["test_num_videos"] == 19

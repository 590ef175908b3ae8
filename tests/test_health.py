"""Each thing that goes wrong is said once and again at the end; a healthy run hears nothing."""

import pytest

from mvm.health import Watch
from mvm.optim import Schedule

PLAN = Schedule(peak=1e-3, end=1e-5, warmup_steps=10, total_steps=200)
CLASSIFIER = {"loss": 2.08, "accuracy": 12.5, "val_top1": 12.5, "val_loss": 2.08}


def judge(plan, constant, rows):
    """(lines when seen, lines at the end)"""
    watch = Watch(plan, constant, clips=32, videos=64)
    return [line for row in rows for line in watch.add(row)], watch.last()


def curve(losses, norms=None, **more):
    """A row every ten steps."""
    norms = norms or [1.0] * len(losses)
    return [
        {"step": 10 * i, "loss": loss, "grad_norm": norm, **more}
        for i, (loss, norm) in enumerate(zip(losses, norms), 1)
    ]


def classifier(
    loss=lambda s: 2.1 - s / 100, top1=lambda s: 15 + s / 3, val=lambda s: 2.1 - s / 150
):
    """Rows of training, and a check every twenty steps."""
    for step in range(10, 201, 10):
        accuracy = 12.5 if loss(step) > 2.05 else 40.0
        yield {"step": step, "loss": loss(step), "accuracy": accuracy, "grad_norm": 1.0}
        if step % 20 == 0:
            yield {"step": step, "val_top1": top1(step), "val_loss": val(step)}


PIXELS, FALLING = {"loss": 1.0}, curve([2.0 - 0.05 * i for i in range(20)])
WRONG = {  # What is said of (what a constant answer gets, rows, changes of the plan).
    "warm-up takes 150 of 200": ({}, FALLING, {"warmup_steps": 150}),
    "the learning rate ends at 0.001": ({}, FALLING, {"end": 1e-3}),
    "loss is 0.999, predicting the mean gives 1; train": (PIXELS, curve([0.999] * 20)),
    "loss is 3, predicting the mean gives 1; lower": (PIXELS, curve([3.0] * 20)),
    "accuracy is 12.5, always answering": (CLASSIFIER, classifier(lambda s: 2.079)),
    "loss is 2.075, a constant answer's is 2.08; raise": (
        {"loss": 2.08, "accuracy": 12.5},
        curve([2.075] * 20, accuracy=40.0),
    ),
    "val_top1 is 12.5, always": (CLASSIFIER, classifier(top1=lambda s: 12.5, val=lambda s: 2.2)),
    "val_top1 is 40 after 70 at step 60": (
        CLASSIFIER,
        classifier(top1=lambda s: 70 if s == 60 else 40, val=lambda s: 1.5),
    ),
    "val_loss is 1.9 after 1.2 at step 80": (
        CLASSIFIER,
        classifier(top1=lambda s: 60, val=lambda s: 1.2 if s == 80 else 1.9),
    ),
    "norm is 40, its median 1, and the loss rises": (
        PIXELS,
        curve([0.8] * 9 + [1.0] + [0.6] * 10, [1.0] * 9 + [40.0] + [1.0] * 10),
    ),
    "norm is 1e-05, its median 1: nothing is learnt": (
        {},
        curve([1.0] * 20, [1.0] * 12 + [1e-5] * 8),
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_wrong_is_said_once_and_again_at_the_end(said):
    constant, rows, *changes = WRONG[said]
    plan, rows = PLAN._replace(**dict(*changes)), list(rows)
    (seen,), (last,) = judge(plan, constant, rows)
    assert said.split(" is ")[0] in seen
    assert said in last
    assert judge(plan._replace(total_steps=6, warmup_steps=1), constant, rows) == ([], [])


# Of `configs/demo.py:pretrain`, of 128 tokens then, on 800 videos, 500 steps.
LOSSES = """1.13 1.003 .995 .993 .993 .993 .991 .99 .989 .986 .987 .986 .985 .984 .984 .982 .981
    .981 .983 .982 .981 .979 .981 .98 .981"""
NORMS = """.252 .075 .041 .028 .031 .034 .032 .038 .044 .035 .037 .043 .04 .035 .036 .035 .033 .03
    .029 .034 .035 .03 .032 .03 .032"""


def test_healthy_runs_hear_nothing():
    rows = curve(*(list(map(float, text.split())) for text in (LOSSES, NORMS)))
    plan = Schedule(1.5e-3, 1.5e-5, warmup_steps=24, total_steps=250)
    assert judge(plan, {"loss": 1 - 1 / 128}, rows) == ([], [])
    # What begins to learn, learns all, and meets an odd clip.
    losses = [2.08, 2.07, 1.9, 1.2, 0.4, *[0.01] * 14, 0.5]
    norms = [0.1, 0.1, 2, 4, 2, *[0.001] * 14, 3]
    assert judge(PLAN, {"loss": 2.08}, curve(losses, norms)) == ([], [])
    # A model that is right on all of validation, and then less sure.
    rows = classifier(top1=lambda s: 100, val=lambda s: 0.01 + s / 2000)
    assert judge(PLAN, CLASSIFIER, rows) == ([], [])

"""What is restored is what was saved, bit for bit, or the step before, or one line."""

import contextlib
import json
import logging
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mvm import tasks
from mvm.runtime import checkpoint, sharding, step_files
from mvm.runtime.checkpoint import CheckpointError, Checkpoints, Place

CONFIG = {"name": "run", "seed": 0}


def state_of(step, width=16):
    """A state with the shapes of ours: nested, of several dtypes, large enough to be split."""
    rng = np.random.default_rng(step)
    params = {
        "encoder": {"blocks": {"kernel": rng.normal(size=(2, width, 256)).astype(np.float32)}},
        "head": {"bias": np.array([0.0, -0.0, np.nan, 1e-42], np.float32)},  # Odd bits, too.
    }
    moments = jax.tree.map(np.square, params)
    state = {
        "step": np.int32(step),
        "params": params,
        "opt": ({"mu": params, "count": np.int32(step)}, {"nu": moments}),
        "key": np.array([step, 2**32 - 1], np.uint32),
    }
    return jax.tree.map(jnp.asarray, state)


def like_of(state, mesh=None):
    mesh = mesh or sharding.make_mesh()
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        sharding.of_state(mesh, state),
    )


def save(folder, *steps, keep=3):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        place = Place(step, 8 * step, step // 2, "40 (abc)")
        checkpoints.save(place, state_of(step), CONFIG)
    checkpoints.close()


def same_bits(actual, expected):
    actual, expected = checkpoint.leaves(actual), checkpoint.leaves(expected)
    assert actual.keys() == expected.keys()
    for name, leaf in expected.items():
        assert actual[name].dtype == leaf.dtype, name
        assert np.asarray(actual[name]).tobytes() == np.asarray(leaf).tobytes(), name


def data_files(step_folder):
    """The files that hold the arrays, largest first."""
    files = [p for p in (step_folder / "state").rglob("*") if p.is_file() and "/d/" in str(p)]
    assert files
    return sorted(files, key=lambda p: -p.stat().st_size)


def damage(step_folder):
    """Flips one bit in the middle of the largest data file."""
    path = data_files(step_folder)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_step_comes_back_bit_by_bit(tmp_path):
    save(tmp_path, 2, 4)
    place, restored = Checkpoints(tmp_path, 3).restore(like_of(state_of(0)))
    assert place == Place(step=4, next_index=32, skipped=2, records="40 (abc)")
    same_bits(restored, state_of(4))
    saved = tmp_path / "checkpoints" / "4"
    assert json.loads((saved / "config" / "metadata").read_text()) == CONFIG


def test_a_fresh_run_has_nothing_to_restore(tmp_path):
    assert checkpoint.steps_in(tmp_path) == []
    assert Checkpoints(tmp_path, 3).restore(like_of(state_of(0))) is None


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert checkpoint.steps_in(tmp_path) == [4, 3]


@pytest.mark.parametrize(("saved", "restored"), [(1, 8), (8, 1), (8, 2)])
def test_a_state_moves_between_shardings(tmp_path, saved, restored):
    mesh = sharding.make_mesh(saved)
    state = jax.device_put(state_of(3), sharding.of_state(mesh, state_of(3)))
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(Place(3, 24, 0), state, CONFIG)
    checkpoints.close()
    like = like_of(state, sharding.make_mesh(restored))
    _, after = Checkpoints(tmp_path, 1).restore(like)
    same_bits(after, state_of(3))
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(str(a)), after, like)
    kernel = after["params"]["encoder"]["blocks"]["kernel"]
    assert kernel.addressable_shards[0].data.size * restored == kernel.size


def test_a_damaged_step_is_named_set_aside_and_the_one_before_used(tmp_path, caplog):
    save(tmp_path, 2, 4)
    damage(tmp_path / "checkpoints" / "4")
    checkpoints = Checkpoints(tmp_path, 3)
    with caplog.at_level(logging.ERROR):
        place, restored = checkpoints.restore(like_of(state_of(0)))
    assert place.step == 2
    same_bits(restored, state_of(2))
    assert f"checkpoint 4 of {tmp_path} is damaged" in caplog.text
    assert (tmp_path / "damaged" / "4").is_dir()
    assert checkpoint.steps_in(tmp_path) == [2]
    # The run goes on and writes that step again.
    checkpoints.save(Place(4, 32, 2), state_of(4), CONFIG)
    checkpoints.close()
    place, restored = Checkpoints(tmp_path, 3).restore(like_of(state_of(0)))
    assert place.step == 4
    same_bits(restored, state_of(4))
    # And is damaged there once more: nothing that was set aside is lost.
    damage(tmp_path / "checkpoints" / "4")
    place, _ = Checkpoints(tmp_path, 3).restore(like_of(state_of(0)))
    assert place.step == 2
    assert sorted(p.name for p in (tmp_path / "damaged").iterdir()) == ["4", "4-2"]


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place if place >= 0 else len(content) // 2] ^= 1
    path.write_bytes(content)


def replace(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


DAMAGE = {
    "other step": ("data/metadata", replace('"step": 4', '"step": 5')),
    "other index": ("data/metadata", replace("32", "33")),
    "other skips": ("data/metadata", replace('"skipped": 2', '"skipped": 3')),
    "other config": ("config/metadata", replace('"seed": 0', '"seed": 1')),
    "no config": ("config/metadata", lambda path: path.unlink()),
    "other list": ("data/metadata", replace("40 (abc)", "40 (abd)")),
    "no digest": ("data/metadata", replace('"digest"', '"digesu"')),
    "other name": ("leaves/metadata", replace("kernel", "kernal")),
    "other shape": ("leaves/metadata", replace("[2, 16, 256]", "[2, 17, 256]")),
    "cut": ("leaves/metadata", lambda path: path.write_bytes(path.read_bytes()[:100])),
    "empty": ("data/metadata", lambda path: path.write_bytes(b"")),
    "removed": ("leaves/metadata", lambda path: path.unlink()),
    "no text": ("data/metadata", lambda path: path.write_bytes(b"\xff\xfe")),
    "no manifest": ("state/manifest.ocdbt", lambda path: path.unlink()),
    "flipped manifest": ("state/manifest.ocdbt", lambda path: flip(path, -1)),
    "no state": ("state", shutil.rmtree),
    "not committed": ("_CHECKPOINT_METADATA", lambda path: path.unlink()),
    "lost array": ("state", lambda path: data_files(path.parent)[0].unlink()),
    "cut array": ("state", lambda path: data_files(path.parent)[0].write_bytes(b"?" * 50)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_any_damage_is_named_and_the_step_before_comes_back(kind, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    name, change = DAMAGE[kind]
    save(tmp_path, 2, 4)
    change(tmp_path / "checkpoints" / "4" / name)
    checkpoints = Checkpoints(tmp_path, 3)
    place, restored = checkpoints.restore(like_of(state_of(0)))
    assert place == Place(2, 16, 1, "40 (abc)")
    same_bits(restored, state_of(2))
    assert (
        f"{tmp_path / 'checkpoints' / '4'} is no whole" in caplog.text or "damaged (" in caplog.text
    )
    assert (tmp_path / "damaged" / "4").is_dir()
    checkpoints.save(Place(4, 32, 2), state_of(4), CONFIG)  # It is not in the way.
    checkpoints.close()
    assert checkpoint.steps_in(tmp_path) == [4, 2]


def test_a_step_from_before_there_was_a_digest_comes_back(tmp_path):
    save(tmp_path, 4)
    path = tmp_path / "checkpoints" / "4" / "data" / "metadata"
    path.write_text('{"step": 4, "next_index": 32, "skipped": 2}')
    place, restored = Checkpoints(tmp_path, 3).restore(like_of(state_of(0)))
    assert place == Place(4, 32, 2)
    same_bits(restored, state_of(4))


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), ValueError("UNAVAILABLE: [OS error 24: EMFILE] too many")],
)
def test_an_error_of_the_disk_is_no_damage(failures, error, tmp_path, monkeypatch, capsys):
    """Read again once; then one line, and everything stays where it is."""
    save(tmp_path, 2, 4)
    read, left = step_files.read_arrays, [error] * failures

    def failing(*arguments):
        if left:
            raise left.pop()
        return read(*arguments)

    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(step_files, "read_arrays", failing)
    checkpoints = Checkpoints(tmp_path, 3)
    if failures == 1:
        assert checkpoints.restore(like_of(state_of(0)))[0].step == 4
    else:
        with pytest.raises(SystemExit, match="75"):
            checkpoints.restore(like_of(state_of(0)))
        (line,) = capsys.readouterr().err.splitlines()
        assert "checkpoints/4 cannot be read now" in line
    assert checkpoint.steps_in(tmp_path) == [4, 2]
    assert not (tmp_path / "damaged").exists()


def test_a_step_that_never_reads_is_named_once_an_older_one_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    save(tmp_path, 2, 4)
    file = tmp_path / "checkpoints" / "4" / "leaves" / "metadata"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # Its first page: an input/output error.
    with pytest.raises(SystemExit, match="2"):
        Checkpoints(tmp_path, 3).restore(like_of(state_of(0)))
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoints/4 cannot be read now" in line
    assert "but 2 can; if that lasts, move 4 out of" in line
    assert checkpoint.steps_in(tmp_path) == [4, 2]


def test_folders_that_are_no_steps_neither_count_nor_stop_a_run(tmp_path):
    save(tmp_path, 2, 4)
    for name in ("9", "11", "007", "²", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert checkpoint.steps_in(tmp_path) == [4, 2]
    save(tmp_path, 9, keep=2)
    assert checkpoint.steps_in(tmp_path) == [9, 4]
    assert sorted(p.name for p in (tmp_path / "damaged").iterdir()) == ["007", "11", "9", "²"]


def test_other_bits_under_the_right_name_are_noticed(tmp_path, caplog):
    # A whole data folder of another step: readable, of the right shapes, and wrong.
    save(tmp_path, 2, 4)
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder / "4" / "state")
    shutil.copytree(folder / "2" / "state", folder / "4" / "state")
    place, _ = Checkpoints(tmp_path, 3).restore(like_of(state_of(0)))
    assert place.step == 2
    assert "are not those that were saved" in caplog.text


def test_if_all_are_damaged_the_line_says_so(tmp_path):
    save(tmp_path, 2, 4)
    for step in (2, 4):
        damage(tmp_path / "checkpoints" / str(step))
    for _ in range(2):  # Asking again does not start the run anew.
        with pytest.raises(CheckpointError, match=r"all checkpoints of .* are damaged") as e:
            Checkpoints(tmp_path, 3).restore(like_of(state_of(0)))
        assert "\n" not in str(e.value)
    assert sorted(p.name for p in (tmp_path / "damaged").iterdir()) == ["2", "4"]


def test_another_model_is_one_line_and_nothing_is_set_aside(tmp_path):
    save(tmp_path, 2)
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(tmp_path, 3).restore(like_of(state_of(0, width=24)))
    message = str(caught.value)
    assert "\n" not in message
    assert "/encoder/blocks/kernel has shape [2, 16, 256]" in message
    assert "wants [2, 24, 256]" in message
    more = state_of(0)
    more["params"]["head"]["kernel"] = jnp.zeros((3, 3))
    with pytest.raises(CheckpointError, match="params/head/kernel is missing"):
        Checkpoints(tmp_path, 3).restore(like_of(more))
    assert checkpoint.steps_in(tmp_path) == [2]
    assert not (tmp_path / "damaged").exists()


@contextlib.contextmanager
def small_files_only(size):
    """No file of this process may grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Orbax leaves the other writes of the failed step to an event loop that is closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_that_cannot_be_written_names_what_is_intact(tmp_path):
    def large(step):
        return state_of(step, width=256)

    def save_and_wait(step):
        checkpoints.save(Place(step, 8 * step, 0), large(step), CONFIG)
        checkpoints.wait()

    checkpoints = Checkpoints(tmp_path, 3)
    save_and_wait(2)
    with small_files_only(2**16), pytest.raises(CheckpointError, match="could not be") as caught:
        save_and_wait(4)
    message = str(caught.value)
    assert "\n" not in message
    assert "intact: 2. Free some space" in message
    assert checkpoint.steps_in(tmp_path) == [2]
    place, restored = Checkpoints(tmp_path, 3).restore(like_of(large(0)))
    assert place.step == 2
    same_bits(restored, large(2))
    # With room again, the same command goes on.
    checkpoints = Checkpoints(tmp_path, 3)
    save_and_wait(4)
    assert checkpoint.steps_in(tmp_path) == [4, 2]


def test_digests_see_every_bit_and_every_place():
    base = {"x": jnp.arange(6, dtype=jnp.float32), "n": jnp.int32(7)}
    first = checkpoint.digests(base)
    assert first.keys() == {"x", "n"}
    assert checkpoint.digests(base) == first
    swapped = base | {"x": base["x"].at[jnp.array([1, 2])].set(jnp.array([2.0, 1.0]))}
    for other in (swapped, base | {"x": base["x"].at[0].set(-0.0)}):
        assert checkpoint.digests(other)["x"] != first["x"]
        assert checkpoint.digests(other)["n"] == first["n"]


# --- weights of another run ----------------------------------------------------------------------


def abstract(task, num_classes=0, **model):
    c = common.finish(common.get_config(), f"{task},smoke")
    c.data.num_classes = num_classes
    if task == "finetune":
        c.mask.name = ""
    c.model.update(model)
    return tasks.build(c).abstract


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run directory of an autoencoder, and its weights."""
    folder, params = tmp_path_factory.mktemp("run"), random_like(abstract("pretrain"))
    checkpoints = Checkpoints(folder, 3)
    for step, weights in ((3, random_like(params, 1)), (6, params)):
        # Nothing but weights, so that a damaged byte is one of them.
        state = {"step": jnp.int32(step), "params": weights}
        checkpoints.save(Place(step, 8 * step, 0), state, CONFIG)
    checkpoints.close()
    return folder, params


def test_a_classifier_takes_the_encoder_of_an_autoencoder(pretrained):
    folder, params = pretrained
    wanted = abstract("finetune", 8)
    loaded, report = checkpoint.load_params(folder, wanted)
    assert set(loaded) == {"encoder"}
    assert set(checkpoint.leaves(loaded["encoder"])) == set(checkpoint.leaves(wanted["encoder"]))
    same = {k: v for k, v in params["encoder"].items() if k != "norm"}
    same_bits(loaded["encoder"], same)
    assert str(folder / "checkpoints" / "6") in report
    for name in ("fc_norm/bias", "fc_norm/scale", "head/bias", "head/kernel"):
        assert name in report


def test_a_step_directory_names_one_step(pretrained):
    folder, params = pretrained
    loaded, report = checkpoint.load_params(folder / "checkpoints" / "3", abstract("pretrain"))
    same_bits(loaded, random_like(params, 1))
    assert "new:" not in report


def test_weights_of_another_size_are_refused(pretrained):
    with pytest.raises(CheckpointError, match="is of another model: params/encoder/") as caught:
        checkpoint.load_params(pretrained[0], abstract("finetune", 8, width=64))
    assert "\n" not in str(caught.value)


def test_a_head_of_other_classes_is_left_out(tmp_path):
    params = random_like(abstract("finetune", 8))
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(Place(1, 8, 0), {"params": params}, CONFIG)
    checkpoints.close()
    loaded, report = checkpoint.load_params(tmp_path, abstract("finetune", 5))
    assert set(loaded) == {"encoder", "fc_norm"}
    assert "new: head/bias, head/kernel" in report
    loaded, _ = checkpoint.load_params(tmp_path, abstract("finetune", 8))
    same_bits(loaded, params)


def test_damaged_weights_give_way_to_the_step_before(pretrained, tmp_path, caplog):
    shutil.copytree(pretrained[0], tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "6")
    loaded, report = checkpoint.load_params(tmp_path / "run", abstract("pretrain"))
    same_bits(loaded, random_like(pretrained[1], 1))
    assert "checkpoints/3" in report
    assert "checkpoints/6 is damaged" in caplog.text
    assert (tmp_path / "run" / "checkpoints" / "6").exists()  # Another run's files stay.
    damage(tmp_path / "run" / "checkpoints" / "3")
    with pytest.raises(CheckpointError, match="every checkpoint there is damaged"):
        checkpoint.load_params(tmp_path / "run", abstract("pretrain"))


def test_a_folder_without_checkpoints_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.load_params(tmp_path, abstract("pretrain"))


def test_split_leaves_are_summed_where_they_are():
    like = like_of(state_of(3), sharding.make_mesh(8))
    text = step_files._digests.lower(like).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text

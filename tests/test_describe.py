"""What shapes tell of a model."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from param_shapes import autoencoder, classifier, like, sampler, task_of, with_positions

from mvm import convert as convert_main
from mvm.weights import convert, describe, huggingface
from mvm.weights.torch_reader import ConvertError

HEADS = {"model.heads": 4, "model.decoder_heads": 2}


def weights_of(shapes: dict[str, Any], tubelet: tuple[int, ...] = (2, 8, 8)) -> Any:
    """Official weights of which only the shapes are there."""
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), like(shapes))
    return convert.from_params(params, tubelet)


RELEASED = [  # width, depth, heads, pixels, decoder: width, depth, heads
    (384, 12, 6, 1536, 192, 4, 3),
    (768, 12, 12, 1536, 384, 4, 6),
    (1024, 2, 16, 1536, 512, 12, 8),  # with fewer blocks than released
    (1280, 1, 16, 1536, 640, 1, 8),
    (1280, 1, 16, 1536, 512, 4, 8),  # of VideoMAE V2
]


@pytest.mark.parametrize("sizes", RELEASED)
def test_released_sizes(sizes: tuple[int, ...]) -> None:
    width, depth, heads, pixels, decoder_width, decoder_depth, decoder_heads = sizes
    shapes = autoencoder(width, depth, pixels, decoder_width, decoder_depth)
    found = describe.describe(weights_of(shapes, (2, 16, 16)))
    assert (found["model.width"], found["model.depth"]) == (width, depth)
    assert found["model.heads"] == heads
    assert (found["model.decoder_width"], found["model.decoder_depth"]) == sizes[4:6]
    assert found["model.decoder_heads"] == decoder_heads
    assert found["model.mlp_ratio"] == 4.0
    task = task_of(found)
    assert jax.tree.map(jnp.shape, task.abstract) == shapes
    assert (task.encoder.heads, task.decoder.heads) == (heads, decoder_heads)


def test_the_giant_of_videomae_v2() -> None:
    weights = {"patch_embed.proj.weight": np.broadcast_to(np.float32(0), (1408, 3, 2, 14, 14))}
    weights["blocks.39.mlp.fc1.weight"] = np.broadcast_to(np.float32(0), (6144, 1408))
    weights["blocks.0.mlp.fc1.weight"] = weights["blocks.39.mlp.fc1.weight"]
    weights["head.weight"] = np.broadcast_to(np.float32(0), (710, 1408))
    found = describe.describe(weights)
    assert (found["model.size"], found["model.depth"], found["model.heads"]) == ("g", 40, 16)
    assert found["model.mlp_ratio"] == 48 / 11
    assert found["model.tubelet"] == (2, 14, 14)
    assert (found["task"], found["data.num_classes"]) == ("finetune", 710)
    del weights["head.weight"]
    assert describe.describe(weights)["data.num_classes"] == 0


GOLDEN = [
    *("videomae_pretrain", "everest_finetune", "adamae_pretrain", "videomaev2_pretrain"),
    *("videomaev2_pretrain_giant_cos", "videomaev2_finetune", "hf_pretrain", "hf_classification"),
]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_model_that_is_built_has_the_parameters(shared: pathlib.Path, name: str) -> None:
    arrays = dict(np.load(shared / "golden" / f"{name}.npz"))
    weights = {key[3:]: array for key, array in arrays.items() if key.startswith("sd/")}
    known: dict[str, Any] = HEADS
    if name.startswith("hf"):
        config = json.loads(str(arrays["config"]))
        weights, known = huggingface.to_official(weights, config), huggingface.known(config)
    found = describe.describe(weights, known)
    assert found["model.cosine_attention"] == name.endswith("cos")
    assert (found["model.layer_scale"] > 0) == (name == "videomaev2_finetune")
    params, _ = convert_main.all_params(weights)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, task_of(found).abstract)


def test_the_sampler_of_adamae() -> None:
    shapes = {**autoencoder(), "sampler": sampler()}
    found = describe.describe(weights_of(shapes), HEADS)
    assert found["mask.name"] == "adamae"
    assert (found["data.num_frames"], found["data.image_size"]) == (16, 32)
    assert jax.tree.map(jnp.shape, task_of(found).abstract) == shapes


def test_learned_positions_and_single_frames() -> None:
    shapes = with_positions(autoencoder())
    shapes["decoder"]["head"] = {"kernel": (32, 192), "bias": (192,)}
    found = describe.describe(weights_of(shapes), HEADS)
    assert (found["model.positions"], found["model.target_frames"]) == ("separable", 1)
    assert (found["data.num_frames"], found["data.image_size"]) == (16, 32)
    assert jax.tree.map(jnp.shape, task_of(found).abstract) == shapes


def test_what_is_known_goes_first_but_for_shapes() -> None:
    weights = weights_of(classifier(heads=4))
    found = describe.describe(weights, {"model.heads": 6, "model.epsilon": 1e-3})
    assert (found["model.heads"], found["model.epsilon"]) == (4, 1e-3)  # scales count the heads


def test_what_cannot_be_told() -> None:
    def line(weights: Any, known: Any = HEADS) -> str:
        with pytest.raises(ConvertError) as caught:
            describe.describe(weights, known)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    weights = weights_of(autoencoder())
    assert "no released encoder is 48 wide" in line(weights, {})
    assert "no released decoder is 32 wide" in line(weights, {"model.heads": 4})
    assert "--decoder-heads" in line(weights, {"model.heads": 4})
    wide = np.broadcast_to(np.float32(0), (96, 32))
    odd = {**weights, "decoder.blocks.0.mlp.fc1.weight": wide}
    assert "are 4 and 3 times as wide" in line(odd)
    image = {"patch_embed.proj.weight": np.broadcast_to(np.float32(0), (48, 3, 8, 8))}
    assert "this is no model of RGB video" in line(image)
    del weights["encoder_to_decoder.weight"]
    assert "encoder_to_decoder.weight is absent" in line(weights)

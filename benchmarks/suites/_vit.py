"""The image encoder of CLIP: its configuration, its checkpoints, and what it computes."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from mapjax import io
from mapjax.io._names import flatten
from mapjax.io._tensor import some

MEAN = (0.48145466, 0.4578275, 0.40821073)
STANDARD_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
}

_PREFIX = r"(?:vision_model\.)?"
# The names that flax gives, to which those of PyTorch and its layouts are brought.
NAMES: dict[str, str | tuple[str, tuple[int, ...]] | None] = {
    r"text_(?:model|projection)\..*|logit_scale|.*position_ids": None,
    _PREFIX + r"(.*norm\d?)\.weight": r"\1.scale",
    _PREFIX + r"(.*position_embedding)\.weight": r"\1.embedding",
    _PREFIX + r"(.*patch_embedding)\.weight": (r"\1.kernel", (2, 3, 1, 0)),
    _PREFIX + r"(.*)\.weight": (r"\1.kernel", (1, 0)),
    _PREFIX + r"(.*)": r"\1",
}


class Config(NamedTuple):
    """Sizes of the encoder, under the names that they have in a `config.json`.

    The defaults are those of ViT-B/32, which such files may leave out.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


def read_config(folder: Path) -> Config:
    """Read the `config.json` of a CLIP model or of its image encoder alone.

    Raises:
        ValueError: If it is missing, damaged, or describes no such encoder.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing. Copy the configuration that Hugging Face keeps beside the "
            "weights there."
        )
    try:
        whole = json.loads(path.read_bytes())
        # A whole model has one width for both encoders; that of the part is not used.
        given = whole.get("vision_config", whole) | {
            key: whole[key] for key in ("projection_dim",) if key in whole
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Copy it again.") from error
    config = Config(**{key: given[key] for key in Config._fields if key in given})
    for key, value, default in zip(
        Config._fields, config, Config._field_defaults.values(), strict=True
    ):
        if type(value) is not type(default) or (not isinstance(value, str) and value <= 0):
            kind = {int: "a positive integer", float: "a positive number", str: "a word"}
            raise ValueError(
                f"{path} has {key!r}: {value!r}, but it must be {kind[type(default)]}."
            )
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"{path} has 'hidden_act': {config.hidden_act!r}, but what can be computed is "
            f"{', '.join(map(repr, ACTIVATIONS))}."
        )
    for key, part in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
        if getattr(config, key) % getattr(config, part):
            raise ValueError(
                f"{path} has {key!r}: {getattr(config, key)}, which {part!r}: "
                f"{getattr(config, part)} does not divide."
            )
    return config


def shapes(config: Config) -> PyTree:
    """Give the tree of parameters, with shapes for arrays."""
    width, inner = config.hidden_size, config.intermediate_size
    patch, channels = config.patch_size, 3

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def dense(before: int, after: int) -> dict[str, Any]:
        return {"kernel": leaf(before, after), "bias": leaf(after)}

    norm = {"scale": leaf(width), "bias": leaf(width)}
    attention = ("q_proj", "k_proj", "v_proj", "out_proj")
    layer = {
        "layer_norm1": norm,
        "self_attn": {name: dense(width, width) for name in attention},
        "layer_norm2": norm,
        "mlp": {"fc1": dense(width, inner), "fc2": dense(inner, width)},
    }
    num_positions = (config.image_size // patch) ** 2 + 1
    return {
        "embeddings": {
            "class_embedding": leaf(width),
            "patch_embedding": {"kernel": leaf(patch, patch, channels, width)},
            "position_embedding": {"embedding": leaf(num_positions, width)},
        },
        "pre_layrnorm": norm,  # as the files spell it
        "encoder": {
            "layers": {str(i): layer for i in range(config.num_hidden_layers)},
        },
        "post_layernorm": norm,
        "visual_projection": {"kernel": leaf(width, config.projection_dim)},
    }


def check(path: Path, config: Config, *, projection: bool) -> None:
    """Compare the names and shapes of a checkpoint with a configuration; read no numbers.

    Args:
        path: Anything that `mapjax.io.load` reads, with the names of PyTorch or of flax.
        config: What the model should be.
        projection: Whether the projection must be there.

    Raises:
        ValueError: If it is no checkpoint of that model.
        OSError: If it is not there.
    """
    with io.open_checkpoint(path) as checkpoint:
        tensors = {
            name: np.broadcast_to(np.zeros((), x.dtype), x.shape)
            for name, x in checkpoint.tensors.items()
        }
    stand_in = np.zeros((config.hidden_size, config.projection_dim), np.float32)
    _renamed(path, tensors, config, None if projection else stand_in)


def read(path: Path, config: Config, projection: Any = None) -> PyTree:
    """Read the encoder of a checkpoint, in float32; the rest of a CLIP model is left out.

    Args:
        path: As in `check`.
        config: What the model is.
        projection: `[hidden, projection]`, for a checkpoint that was saved without one.

    Raises:
        ValueError: As `check`.
    """
    return _renamed(path, flatten(io.load(path)), config, projection)


def embed(
    params: PyTree, images: UInt8[Array, "examples height width 3"], config: Config
) -> Float[Array, "examples projection"]:
    """Embed images where CLIP compares them with texts, not yet of length one.

    There are no running statistics in it: every leaf of `params` is a weight.

    Args:
        params: A tree as `read` gives it.
        images: Colours from 0 to 255, in the size that the configuration says.
        config: What the model is.

    References:
        Radford et al., *Learning Transferable Visual Models From Natural Language
        Supervision*, ICML 2021, arXiv 2103.00020.
    """
    embeddings = params["embeddings"]
    kernel = embeddings["patch_embedding"]["kernel"]
    x = (images / 255 - jnp.array(MEAN)) / jnp.array(STANDARD_DEVIATION)
    # A convolution whose stride is its width is a product with flattened patches.
    x = _patches(x.astype(kernel.dtype), config.patch_size)
    x = x @ kernel.reshape(-1, config.hidden_size)
    token = jnp.broadcast_to(embeddings["class_embedding"], (len(x), 1, config.hidden_size))
    x = jnp.concatenate([token, x], axis=1) + embeddings["position_embedding"]["embedding"]
    x = _norm(params["pre_layrnorm"], x, config)
    for i in range(config.num_hidden_layers):
        x = _layer(params["encoder"]["layers"][str(i)], x, config)
    x = _norm(params["post_layernorm"], x[:, 0], config)
    return x @ params["visual_projection"]["kernel"]


def _patches(x: Array, size: int) -> Array:
    examples, height, width, channels = x.shape
    x = x.reshape(examples, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(examples, -1, size * size * channels)


def _layer(params: PyTree, x: Array, config: Config) -> Array:
    attention, mlp = params["self_attn"], params["mlp"]
    y = _norm(params["layer_norm1"], x, config)
    queries, keys, values = (
        _dense(attention[name], y).reshape(*y.shape[:2], config.num_attention_heads, -1)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    y = jax.nn.dot_product_attention(queries, keys, values).reshape(x.shape)
    x = x + _dense(attention["out_proj"], y)
    y = _dense(mlp["fc1"], _norm(params["layer_norm2"], x, config))
    return x + _dense(mlp["fc2"], ACTIVATIONS[config.hidden_act](y))


def _dense(params: PyTree, x: Array) -> Array:
    return x @ params["kernel"] + params["bias"]


def _norm(params: PyTree, x: Array, config: Config) -> Array:
    y = jax.nn.standardize(x, axis=-1, epsilon=config.layer_norm_eps)
    return y * params["scale"] + params["bias"]


def _renamed(
    path: Path, tensors: Mapping[str, Any], config: Config, projection: Any
) -> PyTree:
    if projection is not None and not any("visual_projection" in n for n in tensors):
        tensors = {**tensors, "visual_projection.kernel": projection}
    like = shapes(config)
    try:
        found, wanted = flatten(io.rename(tensors, NAMES)), flatten(like)
        missing = [name for name in wanted if name not in found]
        extra = [name for name in found if name not in wanted]
        if missing or extra:
            parts = [f"lacks {some(missing)}"] if missing else []
            parts += [f"has {some(extra)} beyond it"] if extra else []
            raise ValueError(f"it {' and '.join(parts)}, with weights named as in flax.")
        return io.rename(tensors, NAMES, like=like)
    except ValueError as error:
        raise ValueError(
            f"{path} is not the image encoder that the config.json of the base describes: "
            f"{error} Put a checkpoint of that model there."
        ) from error

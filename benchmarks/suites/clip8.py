"""clip8: fine-tuned image encoders of CLIP and folders of images, wherever they lie.

The suite of the paper is of this kind: ViT-B/32, fine-tuned on SUN397, Cars, RESISC45,
EuroSAT, SVHN, GTSRB, MNIST and DTD. Neither models nor images are fetched. They are read
from a folder with any number of tasks:

    base/config.json, base/...           the pretrained model
    experts/TASK/...                     a fine-tuned one for each task
    heads/TASK.safetensors               the texts that its classes are told by
    images/TASK/train/CLASS/*.jpg        images to train on,
    images/TASK/validation/CLASS/*.jpg   to choose coefficients on,
    images/TASK/test/CLASS/*.jpg         and to judge merges by
    held_out/heads/TASK.safetensors      tasks that have no expert
    held_out/images/TASK/test/CLASS/*.jpg

Models are folders as Hugging Face saves them (`model.safetensors`, or shards and their
index) or as orbax does, with the names of PyTorch or of flax. Of a whole CLIP model the image
encoder is taken. The weights are merged in float32, all of them: a vision transformer has no
batch normalisation, whose statistics could not be merged. Experts that were saved without
`visual_projection` have that of the base.

A head has the tensors `class_embeddings` [classes, projection], which texts such as "a photo
of a cat" have been embedded to, and `logit_scale`, a factor (100 for CLIP, not its logarithm).
Rows follow the folders of the classes in alphabetical order, as the labels of torchvision's
ImageFolder do; or the order in the file's metadata, `{"classes": json.dumps([...])}`.

Without a folder `validation` a tenth of the images in `train` is split off for it.
"""

import json
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

import mapjax as mj
from benchmarks.suites import _images, _vit
from benchmarks.suites._images import Example
from benchmarks.suites._suite import Suite
from mapjax import io

_VALIDATION_SHARE = 0.1
_HEAD = {"class_embeddings", "logit_scale"}


class ZeroShot(eqx.Module):
    """Tell classes by their texts: the head stays with the task, the encoder is merged.

    Attributes:
        weights: Embeddings of the classes, of length one, times the scale of the logits.
        config: Of the encoder.
    """

    weights: Float[Array, "classes projection"]
    config: _vit.Config = eqx.field(static=True)

    def __call__(
        self, params: PyTree, images: UInt8[Array, "examples height width 3"]
    ) -> Float[Array, "examples classes"]:
        """Compute logits: scaled cosines between an image and the texts of the classes."""
        return _unit(_vit.embed(params, images, self.config)) @ self.weights.T


class _Listed(NamedTuple):
    """A task whose images are known, but not read."""

    name: str
    predict: ZeroShot
    splits: dict[str, list[Example]]

    def read(self, split: str) -> mj.Task:
        images, labels = _images.read(self.splits[split], self.predict.config.image_size)
        return mj.Task(self.name, self.predict, images, labels)


def load(
    seed: int = 0,
    *,
    folder: str | Path,
    num_train: int | None = 500,
    num_validation: int | None = 500,
    num_test: int | None = 2000,
) -> Suite:
    """Read models and images from a folder; how it is laid out, this module says.

    The metric is the accuracy. All files are looked for before weights and images are read.
    Images are kept as bytes, 150 kB each at 224 x 224: eight tasks take 3.6 GB by default.

    Args:
        seed: Draws which images are taken, and which are split off for validation. The
            models are always the same.
        folder: Holds all.
        num_train: At most so many images of each task, or None for all.
        num_validation: As many of each task to choose coefficients on.
        num_test: As many of each task to judge merges by; None to compare with published
            figures.

    Raises:
        ValueError: If something is missing, damaged, or does not fit the rest.
    """
    limits = {"train": num_train, "validation": num_validation, "test": num_test}
    for split, limit in limits.items():
        if limit is not None and limit < 1:
            raise ValueError(
                f"`num_{split}` is {limit}, but must be at least 1, or None for all images."
            )
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"`folder` is {folder}, which is no folder. Pass the one that holds all."
        )
    base_path = root / "base"
    config = _vit.read_config(base_path)
    experts = {
        name: root / "experts" / name
        for name in _images.folders(root / "experts", "task, with its expert")
    }
    _vit.check(base_path, config, projection=True)
    for path in experts.values():
        _check_expert(path, config)
    tasks = [_listed(root, name, config, seed, limits) for name in experts]
    apart = root / "held_out"
    held_out = [
        _listed(apart, name, config, seed, {"test": num_test})
        for name in _images.folders(apart / "images", "task without an expert")
    ]

    base = _vit.read(base_path, config)
    projection = base["visual_projection"]["kernel"]
    vectors = mj.TaskVectors.from_params(
        base, {name: _vit.read(path, config, projection) for name, path in experts.items()}
    )

    def on(split: str, tasks: list[_Listed]) -> mj.Evaluator:
        return mj.Evaluator(vectors, [task.read(split) for task in tasks])

    train, validation, test = (on(s, tasks) for s in ("train", "validation", "test"))
    return Suite("clip8", seed, vectors, train, validation, test, on("test", held_out))


def _check_expert(path: Path, config: _vit.Config) -> None:
    if (path / "config.json").is_file():
        # An encoder that was saved without a projection may give any width for it.
        own = _vit.read_config(path)._replace(projection_dim=config.projection_dim)
        other = [k for k, a, b in zip(config._fields, own, config, strict=True) if a != b]
        if other:
            raise ValueError(
                f"{path / 'config.json'} differs from that of the base in {other}. Put an "
                "expert there that was fine-tuned from the base."
            )
    _vit.check(path, config, projection=False)


def _listed(
    root: Path, name: str, config: _vit.Config, seed: int, limits: dict[str, int | None]
) -> _Listed:
    """Find the images of a task, and read its head."""
    images = root / "images" / name
    weights, classes = _read_head(root / "heads" / f"{name}.safetensors", config)
    if classes is None:
        classes = _images.folders(images / "test", "class, with its images")
    if len(classes) != len(weights):
        raise ValueError(
            f"{root / 'heads' / name}.safetensors tells {len(weights)} classes, but "
            f"{images / 'test'} has {len(classes)}. Give each class one row and one folder."
        )
    splits = {"test": _images.find(images / "test", classes, seed)}
    if "train" in limits:
        splits["train"] = _images.find(images / "train", classes, seed)
        if (images / "validation").is_dir():
            splits["validation"] = _images.find(images / "validation", classes, seed)
        else:
            cut = max(1, round(_VALIDATION_SHARE * len(splits["train"])))
            splits["validation"] = splits["train"][:cut]
            splits["train"] = splits["train"][cut:]
            if not splits["train"]:
                raise ValueError(
                    f"{images / 'train'} has one image, and none is left for validation. "
                    f"Put more there, or some into {images / 'validation'}."
                )
    cut = {split: splits[split][:limit] for split, limit in limits.items()}
    return _Listed(name, ZeroShot(weights, config), cut)


def _read_head(path: Path, config: _vit.Config) -> tuple[Array, list[str] | None]:
    """Read the weights of a head, and the names of its classes if it has any."""
    if not path.is_file():
        raise ValueError(
            f"{path} is missing. Embed a text for each class with the text encoder, and save "
            "`class_embeddings` and `logit_scale` there."
        )
    with io.open_checkpoint(path) as checkpoint:
        if {*checkpoint.tensors} != _HEAD:
            raise ValueError(
                f"{path} has the tensors {sorted(checkpoint.tensors)}, but a head has "
                f"{sorted(_HEAD)}."
            )
        texts, scale = (checkpoint.read(name).astype(np.float32) for name in sorted(_HEAD))
        words = checkpoint.metadata.get("classes")
    if texts.ndim != 2 or texts.shape[1] != config.projection_dim or scale.size != 1:
        raise ValueError(
            f"{path} has `class_embeddings` {texts.shape} and `logit_scale` {scale.shape}, "
            f"but the model needs [classes, {config.projection_dim}] and one number."
        )
    if not (np.isfinite(texts).all() and texts.any(axis=1).all() and 0 < scale < np.inf):
        raise ValueError(
            f"{path} has a class without a direction, or numbers that are not finite, or "
            f"`logit_scale` {scale.item()}, which must be positive. Make it again."
        )
    weights = scale.item() * _unit(jnp.asarray(texts))
    return weights, None if words is None else _class_names(path, words)


def _class_names(path: Path, words: str) -> list[str]:
    try:
        names = json.loads(words)
    except ValueError:
        names = None
    if not isinstance(names, list) or len({*map(str, names)}) != len(names):
        raise ValueError(
            f"{path} has the metadata 'classes': {words[:200]}, but it must be a JSON list of "
            "the names of the classes' folders, each once."
        )
    return [str(name) for name in names]


def _unit(x: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    # A merge that gives all zeros has no direction, but has a score and a derivative.
    return x / jnp.sqrt(jnp.maximum(squares, jnp.finfo(x.dtype).tiny))

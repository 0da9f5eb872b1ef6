"""What the tests of clip8 share: small files, and the same model in NumPy."""

import json

import numpy as np
import safetensors.numpy
from PIL import Image
from scipy.stats import norm as gaussian

from mapjax import io

CONFIG = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 6,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
CLASSES = ["bird", "cat", "dog"]
SCALE = 20.0
# Sizes as Pillow gives them, that of the shorter side made 8, and the corner of the middle.
MIDDLES = {
    (13, 9): ((11, 8), (2, 0)),
    (8, 8): ((8, 8), (0, 0)),
    (6, 20): ((8, 26), (0, 9)),
}


def tensors(seed, like=None) -> dict[str, np.ndarray]:
    """Tensors with the names, the layouts and the order of Hugging Face."""
    rng = np.random.default_rng(seed)
    shapes = {
        "vision_model.embeddings.class_embedding": (8,),
        "vision_model.embeddings.patch_embedding.weight": (8, 3, 4, 4),
        "vision_model.embeddings.position_embedding.weight": (5, 8),
        "vision_model.pre_layrnorm": (8,),
        "vision_model.post_layernorm": (8,),
        "visual_projection.weight": (6, 8),
    }
    for i in range(2):
        layer = f"vision_model.encoder.layers.{i}"
        shapes |= {f"{layer}.layer_norm{j}": (8,) for j in (1, 2)}
        shapes |= {f"{layer}.self_attn.{x}_proj": (8, 8) for x in ("k", "v", "q", "out")}
        shapes |= {f"{layer}.mlp.fc1": (12, 8), f"{layer}.mlp.fc2": (8, 12)}
    found = {}
    for name, shape in shapes.items():
        if name.endswith(("weight", "class_embedding")):
            found[name] = rng.normal(size=shape)
        else:
            found[f"{name}.weight"] = rng.normal(size=shape)
            found[f"{name}.bias"] = rng.normal(size=shape[0])
    if like is not None:
        found = {name: like[name] + 0.3 * x for name, x in found.items()}
    return {name: x.astype(np.float32) for name, x in found.items()}


def reference(t, image, config):
    """Embed one image in float64, patch by patch and head by head."""
    t = {name.removeprefix("vision_model."): x.astype(float) for name, x in t.items()}
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = ((image / 255 - mean) / deviation).transpose(2, 0, 1)
    filters = t["embeddings.patch_embedding.weight"]

    def norm(x, name):
        centred = x - x.mean()
        root = np.sqrt((centred**2).mean() + config["layer_norm_eps"])
        return centred / root * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(x, name):
        return t[f"{name}.weight"] @ x + t[f"{name}.bias"]

    def activation(x):
        if config["hidden_act"] == "quick_gelu":
            return x / (1 + np.exp(-1.702 * x))
        return x * gaussian.cdf(x)

    x = []
    for top in (0, 4):
        for left in (0, 4):
            patch = pixels[:, top : top + 4, left : left + 4]
            x.append(np.array([np.sum(f * patch) for f in filters]))
    places = t["embeddings.position_embedding.weight"]
    x = [t["embeddings.class_embedding"], *x]
    x = [a + b for a, b in zip(x, places, strict=True)]
    x = [norm(a, "pre_layrnorm") for a in x]
    width = 8 // config["num_attention_heads"]
    for i in range(2):
        layer = f"encoder.layers.{i}"
        y = [norm(a, f"{layer}.layer_norm1") for a in x]
        q, k, v = ([linear(a, f"{layer}.self_attn.{n}_proj") for a in y] for n in "qkv")
        for j in range(len(x)):
            heads = []
            for s in range(0, 8, width):
                part = slice(s, s + width)
                weights = np.exp([q[j][part] @ b[part] / np.sqrt(width) for b in k])
                rows = zip(weights / weights.sum(), v, strict=True)
                heads.append(sum(w * b[part] for w, b in rows))
            x[j] = x[j] + linear(np.concatenate(heads), f"{layer}.self_attn.out_proj")
        for j, a in enumerate(x):
            inner = activation(linear(norm(a, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1"))
            x[j] = a + linear(inner, f"{layer}.mlp.fc2")
    return t["visual_projection.weight"] @ norm(x[0], "post_layernorm")


def write_image(path, rng, size, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def read_image(path):
    image = Image.open(path).convert("RGB")
    size, (left, top) = MIDDLES[image.size]
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    return resized[top : top + 8, left : left + 8]


def write_task(root, task, rng, splits, classes=None):
    sizes = list(MIDDLES)
    for split, count in splits.items():
        for name in CLASSES:
            for i in range(count):
                path = root / "images" / task / split / name / f"{i}.png"
                write_image(path, rng, sizes[i % len(sizes)])
    texts = rng.normal(size=(3, 6)).astype(np.float32)
    path = root / "heads" / f"{task}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"class_embeddings": texts, "logit_scale": np.array([SCALE], np.float32)}
    metadata = None if classes is None else {"classes": json.dumps(classes)}
    safetensors.numpy.save_file(head, path, metadata)
    return texts


def write_config(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def write_folder(root):
    """Write an orbax base, an expert in one file and one in shards, and three tasks."""
    rng = np.random.default_rng(0)
    base = tensors(0)
    models = {"alpha": tensors(1, base), "beta": tensors(2, base)}

    nested = {}
    for name, x in base.items():
        *groups, last = name.split(".")
        here = nested
        for group in groups:
            here = here.setdefault(group, {})
        here[last] = x
    io.save(root / "base", nested)
    write_config(root / "base")

    alpha = root / "experts" / "alpha"
    write_config(alpha)
    safetensors.numpy.save_file(models["alpha"], alpha / "model.safetensors")
    beta, places = root / "experts" / "beta", {}
    beta.mkdir()
    for i, part in enumerate((slice(0, 17), slice(17, None))):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        shard = dict(list(models["beta"].items())[part])
        safetensors.numpy.save_file(shard, beta / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": places}
    (beta / "model.safetensors.index.json").write_text(json.dumps(index))

    splits = {"train": 4, "validation": 2, "test": 2}
    heads = {
        "alpha": write_task(root, "alpha", rng, splits),
        "beta": write_task(root, "beta", rng, {"train": 7, "test": 1}, CLASSES[::-1]),
        "gamma": write_task(root / "held_out", "gamma", rng, {"test": 1}),
    }
    return base, models, heads


def expected(model, texts, folder, order=CLASSES):
    """By the image's bytes, the logits and the label."""
    found = {}
    texts = np.float64(texts)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    for path in folder.rglob("*.png"):
        image = read_image(path)
        y = reference(model, image, CONFIG)
        label = order.index(path.parent.name)
        found[image.tobytes()] = SCALE * texts @ y / np.linalg.norm(y), label
    return found

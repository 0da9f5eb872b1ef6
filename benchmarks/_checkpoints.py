"""Checkpoints of random numbers, as Hugging Face folders of a model like Llama."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}

_SHARD = 2**30  # bytes, as far as whole tensors go
_INDEX = "model.safetensors.index.json"


def checkpoints(folder: Path, num_bytes: float, dtype: str) -> list[Path]:
    """Find a base and three experts in a folder, or write them."""
    config = _llama(num_bytes, DTYPES[dtype])
    paths = [folder / name for name in ("base", "math", "code", "chat")]
    for i, path in enumerate(paths):
        if not path.exists():
            _write(path, config, seed=i, base=paths[0] if i else None)
        if json.loads((path / "config.json").read_text()) != config:
            raise SystemExit(f"{path} is another model: pass another --folder.")
    return paths


def _llama(num_bytes: float, dtype: np.dtype) -> dict[str, Any]:
    """Describe a model like Llama's of about so many bytes."""
    small = num_bytes < 1e9
    hidden, inner, words = (512, 1408, 4000) if small else (2048, 5632, 32000)
    each = 2 * hidden * hidden * 5 // 4 + 3 * hidden * inner
    layers = max(1, round((num_bytes / dtype.itemsize - 2 * words * hidden) / each))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "vocab_size": words,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": dtype.name,
    }


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden * kv // heads, hidden),
        "self_attn.v_proj": (hidden * kv // heads, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    return {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        **{
            f"model.layers.{i}.{name}.weight": shape
            for i in range(config["num_hidden_layers"])
            for name, shape in layer.items()
        },
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }


def _write(
    folder: Path, config: Mapping[str, Any], *, seed: int, base: Path | None = None
) -> None:
    """Write a Hugging Face folder of random numbers, near those of a base if there is one."""
    shapes, dtype = _shapes(config), DTYPES[config["torch_dtype"]]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    rng = np.random.default_rng(seed)
    # Numbers of a pool in another order each time: drawing all of them takes minutes.
    pool = rng.standard_normal(2**22 + 1009, np.float32)
    shards: list[list[str]] = [[]]
    for name in shapes:
        size = sum(np.prod(shapes[n]) for n in [*shards[-1], name]) * dtype.itemsize
        if size > _SHARD and shards[-1]:
            shards.append([])
        shards[-1].append(name)
    places: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in names:
            size = int(np.prod(shapes[name]))
            numbers = 0.02 * np.resize(np.roll(pool, rng.integers(pool.size)), size)
            numbers = numbers.reshape(shapes[name])
            if base is not None:
                numbers = 0.05 * numbers + read(base, name).astype(np.float32)
            tensors[name] = numbers.astype(dtype)
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": nbytes(folder)}, "weight_map": places}
    (folder / _INDEX).write_text(json.dumps(index, indent=2))


def files(folders: Sequence[Path]) -> list[Path]:
    """List the shards of some checkpoints."""
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def nbytes(folder: Path) -> int:
    """Say how large a checkpoint is."""
    return sum(file.stat().st_size for file in files([folder]))


def weight_map(folder: Path) -> dict[str, str]:
    """Say which file holds which tensor."""
    if (folder / _INDEX).exists():
        return json.loads((folder / _INDEX).read_text())["weight_map"]
    (file,) = files([folder])
    with safe_open(file, framework="numpy") as opened:
        return dict.fromkeys(opened.keys(), file.name)


def read(folder: Path, name: str) -> np.ndarray:
    """Read one tensor."""
    with safe_open(folder / weight_map(folder)[name], framework="numpy") as file:
        return file.get_tensor(name)

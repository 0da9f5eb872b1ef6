"""BERT as a flax NNX model that can be run in two parts, the lower one once for all merges."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from mapjax import io


class Sizes(NamedTuple):
    """How large a BERT is; the defaults are those of MiniLM-L6."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    inner: int = 1536
    heads: int = 12
    layers: int = 6


# From the names of Hugging Face checkpoints. What is left out serves other purposes: the
# pooler reads the first token alone, and the positions are 0, 1, 2, ...
NAMES = {
    r"pooler\..*|embeddings\.position_ids": None,
    r"embeddings\.word_embeddings\.weight": "words.embedding",
    r"embeddings\.position_embeddings\.weight": "positions.embedding",
    r"embeddings\.token_type_embeddings\.weight": "segments.embedding",
    r"embeddings\.LayerNorm\.weight": "norm.scale",
    r"embeddings\.LayerNorm\.bias": "norm.bias",
    r"encoder\.layer\.(\d+)\.attention\.self\.(\w+)\.weight": (
        r"layers.\1.\2.kernel",
        (1, 0),
    ),
    r"encoder\.layer\.(\d+)\.attention\.self\.(\w+)\.bias": r"layers.\1.\2.bias",
    r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.weight": (
        r"layers.\1.attention_norm.scale"
    ),
    r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.bias": (
        r"layers.\1.attention_norm.bias"
    ),
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.weight": (
        r"layers.\1.attention_out.kernel",
        (1, 0),
    ),
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.bias": (
        r"layers.\1.attention_out.bias"
    ),
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.weight": (r"layers.\1.up.kernel", (1, 0)),
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.bias": r"layers.\1.up.bias",
    r"encoder\.layer\.(\d+)\.output\.dense\.weight": (r"layers.\1.down.kernel", (1, 0)),
    r"encoder\.layer\.(\d+)\.output\.dense\.bias": r"layers.\1.down.bias",
    r"encoder\.layer\.(\d+)\.output\.LayerNorm\.weight": r"layers.\1.norm.scale",
    r"encoder\.layer\.(\d+)\.output\.LayerNorm\.bias": r"layers.\1.norm.bias",
}


class Layer(nnx.Module):
    """Attention of several heads, then a perceptron, each normalised after its residual."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        dense = partial(nnx.Linear, rngs=rngs)
        self.query = dense(sizes.width, sizes.width)
        self.key = dense(sizes.width, sizes.width)
        self.value = dense(sizes.width, sizes.width)
        self.attention_out = dense(sizes.width, sizes.width)
        self.attention_norm = _norm(sizes, rngs)
        self.up = dense(sizes.width, sizes.inner)
        self.down = dense(sizes.inner, sizes.width)
        self.norm = _norm(sizes, rngs)
        self.heads = sizes.heads

    def __call__(
        self,
        x: Float[Array, "examples tokens width"],
        mask: Bool[Array, "examples tokens"],
    ) -> Float[Array, "examples tokens width"]:
        """Compute the states after this layer."""
        q, k, v = (
            dense(x).reshape(*x.shape[:2], self.heads, -1)
            for dense in (self.query, self.key, self.value)
        )
        scores = jnp.einsum("eqhd,ekhd->ehqk", q, k) / jnp.sqrt(q.shape[-1]).astype(x.dtype)
        # The least number rather than -inf: a row that is all padding must not give NaN.
        least = jnp.finfo(x.dtype).min
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, least))
        attended = jnp.einsum("ehqk,ekhd->eqhd", weights, v).reshape(x.shape)
        x = self.attention_norm(x + self.attention_out(attended))
        return self.norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    """The encoder of Devlin et al. (2019), https://arxiv.org/abs/1810.04805, for one text."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        embed = partial(nnx.Embed, features=sizes.width, rngs=rngs)
        self.words = embed(sizes.vocabulary)
        self.positions = embed(sizes.positions)
        self.segments = embed(2)
        self.norm = _norm(sizes, rngs)
        self.layers = nnx.List([Layer(sizes, rngs=rngs) for _ in range(sizes.layers)])

    def embed(
        self, tokens: Int[Array, "examples tokens"]
    ) -> Float[Array, "examples tokens width"]:
        """Compute the states that the first layer starts from."""
        places = self.positions(jnp.arange(tokens.shape[1])) + self.segments(jnp.array(0))
        return self.norm(self.words(tokens) + places)

    def __call__(
        self,
        tokens: Int[Array, "examples tokens"],
        mask: Bool[Array, "examples tokens"],
        *,
        last: int | None = None,
    ) -> Float[Array, "examples tokens width"]:
        """Compute the states after the first `last` layers, by default all of them."""
        x = self.embed(tokens)
        for layer in self.layers[:last]:
            x = layer(x, mask)
        return x


class Classifier(nnx.Module):
    """A BERT with a linear head on the mean of its last states."""

    def __init__(self, bert: Bert, head: nnx.Linear):
        self.bert = bert
        self.head = head

    def __call__(
        self,
        x: Float[Array, "examples tokens width"],
        mask: Bool[Array, "examples tokens"],
        *,
        first: int = 0,
    ) -> Float[Array, "examples classes"]:
        """Compute logits from the states before layer `first`."""
        for layer in self.bert.layers[first:]:
            x = layer(x, mask)
        return self.head(mean_pool(x, mask))


def mean_pool(
    x: Float[Array, "examples tokens width"], mask: Bool[Array, "examples tokens"]
) -> Float[Array, "examples width"]:
    """Average the states of the tokens that are no padding."""
    real = mask[..., None].astype(x.dtype)
    return (x * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)


@nnx.jit
def sentence_embeddings(
    bert: Bert, tokens: Int[Array, "examples tokens"], mask: Bool[Array, "examples tokens"]
) -> Float[Array, "examples width"]:
    """Embed texts as sentence-transformers does: mean of the last states, of length one."""
    mean = mean_pool(bert(tokens, mask), mask)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def read_bert(tensors: dict[str, Any], sizes: Sizes) -> Bert:
    """Make a model of a checkpoint's tensors, under their names at Hugging Face.

    Raises:
        ValueError: If names or shapes are not those of a BERT of these sizes.
    """
    shapes = nnx.eval_shape(lambda: Bert(sizes, rngs=nnx.Rngs(0)))
    graph, like = nnx.split(shapes)
    return nnx.merge(graph, jax.tree.map(jnp.asarray, io.rename(tensors, NAMES, like=like)))


@cache
def skeleton(sizes: Sizes, num_classes: int) -> Classifier:
    """Make a classifier of shapes alone, for `put_back` to fill a copy of."""

    def make() -> Classifier:
        rngs = nnx.Rngs(0)
        head = nnx.Linear(sizes.width, num_classes, rngs=rngs)
        return Classifier(Bert(sizes, rngs=rngs), head)

    return nnx.eval_shape(make)


def take_out(model: Classifier, num_layers: int) -> PyTree:
    """Copy the parameters of the last layers and the head: nested dicts of arrays.

    Keys are words, also those of layers ("4", "5"), so that any checkpoint holds them.
    """
    state: Any = nnx.to_pure_dict(nnx.state(model))
    layers = list(state["bert"]["layers"].items())[-num_layers:]
    bert = {"layers": {str(number): layer for number, layer in layers}}
    return {"bert": bert, "head": state["head"]}


def put_back(model: Classifier, params: PyTree) -> Classifier:
    """Copy a classifier with some of its parameters, such as merged ones, replaced.

    Args:
        model: Stays as it is. `skeleton` makes one that has nothing else.
        params: As `take_out` gives them.
    """
    copy = nnx.clone(model)
    nnx.update(copy, nnx.restore_int_paths(params))
    return copy


def _norm(sizes: Sizes, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance is a difference of two large numbers.
    return nnx.LayerNorm(sizes.width, epsilon=1e-12, use_fast_variance=False, rngs=rngs)

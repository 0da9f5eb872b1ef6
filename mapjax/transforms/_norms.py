"""MetaGPT and Model Stock: scale vectors by what their lengths and angles say."""

import jax.numpy as jnp
from jaxtyping import Array

from mapjax._algebra import largest, norms, norms_over
from mapjax._jit import jit
from mapjax._tensors import edit_each, edit_tensors, per_task, sum_tasks
from mapjax.task_vectors import TaskVectors


def metagpt(task_vectors: TaskVectors) -> TaskVectors:
    r"""Weight each task by its share of the squared lengths (MetaGPT).

    $\tau'_i = \lambda_i \tau_i$ with $\lambda_i = \|\tau_i\|^2 / \sum_j \|\tau_j\|^2$ over
    the whole model, which minimises an upper bound on the mean increase of the losses.

    Needs nothing but the vectors. Costs two passes over them. A starting point without
    tuning where tasks weigh alike; the weights sum to one, so that the front lies beyond
    coefficients of one. Coefficients of one give MetaGPT.

    Args:
        task_vectors: The base and the vectors.

    Returns:
        Task vectors whose sum is the published merge.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> experts = [jnp.array([1.0, 0.0]), jnp.array([0.0, 3.0])]
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), experts)
        >>> mj.merge(mj.transforms.metagpt(tv), [1.0, 1.0]).round(3)
        Array([0.1, 2.7], dtype=float32)

    References:
        Zhou et al., *MetaGPT: Merging Large Language Models Using Model Exclusive Task
        Arithmetic*, EMNLP 2024, arXiv 2406.11385.
    """
    return edit_tensors(task_vectors, _metagpt)


@jit
def _metagpt(vectors: list[Array]) -> list[Array]:
    norm = norms_over(vectors)
    squares = (norm / largest(norm, 0)) ** 2
    weights = squares / jnp.maximum(jnp.sum(squares), 1)  # 1 at least, or all are zero
    return edit_each(vectors, lambda v: per_task(weights, v).astype(v.dtype) * v)


def model_stock(task_vectors: TaskVectors) -> TaskVectors:
    r"""Pull the mean of the experts towards the base by the angle between them (Stock).

    For each tensor, $\tau'_i = t \, \tau_i / N$ with
    $t = N \cos\theta / (1 + (N - 1) \cos\theta)$, where $\cos\theta$ is the mean cosine
    between two experts' vectors. Experts at a right angle, or a wider one, leave the base.

    Needs nothing but the vectors. Costs three passes over them. For experts of one task
    with different seeds or settings, which a mean would leave too far out. Coefficients of
    one give $t \, \mathrm{mean}_i(\theta_i) + (1 - t) \, \theta_0$; a single expert is
    returned as it is.

    Args:
        task_vectors: The base and the vectors.

    Returns:
        Task vectors whose sum is the published merge.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> experts = [jnp.array([1.0, 0.0]), jnp.array([0.6, 0.8])]
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), experts)
        >>> mj.merge(mj.transforms.model_stock(tv), [1.0, 1.0]).round(3)  # t is 0.75
        Array([0.6, 0.3], dtype=float32)

    References:
        Jang et al., *Model Stock: All We Need Is Just a Few Fine-Tuned Models*, ECCV 2024,
        arXiv 2403.19522.
    """
    if task_vectors.num_tasks == 1:
        return task_vectors
    return edit_tensors(task_vectors, _model_stock)


@jit
def _model_stock(vectors: list[Array]) -> list[Array]:
    def edit(v: Array) -> Array:
        n = v.shape[0]
        norm = norms(v.reshape(n, -1), 1)
        units = v / per_task(jnp.where(norm > 0, norm, 1), v)  # an unchanged tensor: cos 0
        lengths = jnp.sum(jnp.abs(units) ** 2)
        # The square of the sum holds every pair twice, and each vector with itself.
        pairs = jnp.sum(jnp.abs(sum_tasks(units)) ** 2) - lengths
        cos = jnp.maximum(pairs / (n * (n - 1)), 0)
        return v * cos / (1 + (n - 1) * cos)

    return edit_each(vectors, edit)

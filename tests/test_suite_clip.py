"""clip8: checkpoints, heads and images of a folder become the suite that they describe."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from clip_tools import (
    CLASSES,
    CONFIG,
    MIDDLES,
    expected,
    read_image,
    reference,
    write_config,
    write_folder,
    write_image,
)

import mapjax as mj
from benchmarks.suites import _images, _vit, clip8
from mapjax import io


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("clip")
    return root, *write_folder(root)


@pytest.fixture(scope="module")
def suite(written):
    return clip8.load(0, folder=written[0])


@pytest.mark.slow
def test_scores_and_logits_are_those_of_numpy(suite, written):
    root, base, models, heads = written
    assert suite.names == ("alpha", "beta") == suite.task_vectors.names
    assert suite.task_vectors.left_alone == {}
    table = np.asarray(suite.validation(np.eye(2)))
    outputs = suite.validation.outputs(np.eye(2))
    folders = {"alpha": "alpha/validation", "beta": "beta/train"}
    orders = {"alpha": CLASSES, "beta": CLASSES[::-1]}
    for j, task in enumerate(suite.validation.tasks):
        assert task.inputs.dtype == np.uint8
        for i, expert in enumerate(models.values()):
            name = task.name
            where = root / "images" / folders[name]
            truth = expected(expert, heads[name], where, orders[name])
            rows = [truth[np.asarray(x).tobytes()] for x in task.inputs]
            logits = np.array([logits for logits, _ in rows])
            np.testing.assert_allclose(outputs[name][i], logits, rtol=1e-4, atol=1e-3)
            np.testing.assert_array_equal(task.targets, [label for _, label in rows])
            hits = logits.argmax(axis=1) == np.asarray(task.targets)
            assert table[i, j] == pytest.approx(hits.mean())
    assert [task.num_examples for task in suite.validation.tasks] == [6, 2]

    truth = expected(base, heads["gamma"], root / "held_out")
    (gamma,) = suite.held_out.tasks
    logits = suite.held_out.outputs(np.zeros((1, 2)))["gamma"][0]
    wanted = [truth[np.asarray(x).tobytes()][0] for x in gamma.inputs]
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-3)


def bytes_of(task):
    return {np.asarray(x).tobytes() for x in task.inputs}


def test_validation_is_split_off_by_the_seed_and_stays_apart(suite, written):
    root = written[0]
    everything = {*expected(written[1], written[3]["beta"], root / "images/beta/train")}
    train, validation = bytes_of(suite.train.tasks[1]), bytes_of(suite.validation.tasks[1])
    assert (len(train), len(validation)) == (19, 2)
    assert train | validation == everything
    assert not train & validation


def test_the_order_of_images_is_the_same_on_any_machine(tmp_path):
    folders = {"here": ["a/1.png", "b/2.png", "b/deeper/3.jpg"]}
    folders["there"] = folders["here"][::-1]
    found = {}
    for place, names in folders.items():
        for name in names:
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / place / "a" / "notes.txt").touch()
        (tmp_path / place / "a" / ".hidden.png").touch()
        for seed in range(4):
            rows = _images.find(tmp_path / place, ["a", "b"], seed)
            relative = [x.path.relative_to(tmp_path / place) for x in rows]
            assert all(
                "ab"[x.label] == r.parts[0] for x, r in zip(rows, relative, strict=True)
            )
            found[place, seed] = [r.as_posix() for r in relative]
    # `printf 1/b/deeper/3.jpg | sha256sum` begins with 4a, 1/b/2.png with 80, 1/a/1.png a9.
    assert found["here", 1] == ["b/deeper/3.jpg", "b/2.png", "a/1.png"]
    assert all(found["here", seed] == found["there", seed] for seed in range(4))
    assert len({tuple(found["here", seed]) for seed in range(4)}) > 1


def test_limits_take_the_beginning_of_what_all_would_be(written, monkeypatch):
    taken = []
    monkeypatch.setattr(
        mj.Evaluator, "__init__", lambda self, rule, tasks: taken.append(tasks)
    )
    root = written[0]
    for limit in (1, None):
        clip8.load(3, folder=root, num_train=limit, num_validation=limit, num_test=limit)
    few, every = taken[:4], taken[4:]
    assert [task.num_examples for split in few for task in split] == [1] * 7
    counts = [[task.num_examples for task in split] for split in every]
    assert counts == [[12, 19], [6, 2], [6, 3], [3]]
    for one, other in zip(*map(itertools.chain.from_iterable, (few, every)), strict=True):
        np.testing.assert_array_equal(one.inputs[0], other.inputs[0])


def test_images_are_read_as_pillow_reads_them(tmp_path):
    rng, examples = np.random.default_rng(0), []
    kinds = [("grey.png", "L"), ("palette.PNG", "P"), ("clear.png", "RGBA")]
    for name, mode in [*kinds, ("photo.jpg", "RGB"), ("screen.jpeg", "CMYK")]:
        for size in MIDDLES:
            path = tmp_path / "x" / str(size) / name
            write_image(path, rng, size, mode)
            examples.append(_images.Example(path, len(examples)))
    images, labels = _images.read(examples, 8)
    assert (images.dtype, images.shape) == (np.uint8, (15, 8, 8, 3))
    np.testing.assert_array_equal(images, [read_image(x.path) for x in examples])
    np.testing.assert_array_equal(labels, range(15))
    assert len(_images.find(tmp_path, ["x"], 0)) == 15


def embed(params, image, **changes):
    config = _vit.Config(**CONFIG | changes)
    run = jax.jit(lambda params, images: _vit.embed(params, images, config))
    return run(params, jnp.asarray(image[None]))[0]


def test_other_activations_heads_and_constants(written):
    base = written[1]
    image = np.random.default_rng(0).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    params = _vit.read(written[0] / "base", _vit.Config(**CONFIG))
    changes = {"hidden_act": "gelu", "num_attention_heads": 4, "layer_norm_eps": 0.1}
    truth = reference(base, image, CONFIG | changes)
    np.testing.assert_allclose(embed(params, image, **changes), truth, atol=1e-4)
    # Each of them matters, so that none can be ignored.
    for key in changes:
        other = reference(base, image, CONFIG | changes | {key: CONFIG[key]})
        assert np.abs(other - truth).max() > 1e-3


def assert_same(params, truth):
    assert jax.tree.structure(params) == jax.tree.structure(truth)
    jax.tree.map(np.testing.assert_array_equal, params, truth)


def test_a_whole_model_an_encoder_alone_and_a_saved_merge_are_read(written, tmp_path):
    root, base, models, _ = written
    config = _vit.Config(**CONFIG)
    truth = _vit.read(root / "base", config)

    whole = {
        "text_model.encoder.layers.0.mlp.fc1.weight": np.ones((2, 2), np.float32),
        "text_projection.weight": np.ones((2, 2), np.float32),
        "vision_model.embeddings.position_ids": np.arange(5)[None],
        "logit_scale": np.array([4.6], np.float32),
    }
    io.save(tmp_path / "whole" / "model.safetensors", base | whole)
    vision = {"vision_config": CONFIG | {"projection_dim": 512}, "projection_dim": 6}
    (tmp_path / "whole" / "config.json").write_text(json.dumps(vision))
    assert _vit.read_config(tmp_path / "whole") == config
    _vit.check(tmp_path / "whole", config, projection=True)
    assert_same(_vit.read(tmp_path / "whole", config), truth)

    alone = {name.removeprefix("vision_model."): x for name, x in models["alpha"].items()}
    del alone["visual_projection.weight"]
    io.save(tmp_path / "alone.safetensors", alone)
    _vit.check(tmp_path / "alone.safetensors", config, projection=False)
    kernel = truth["visual_projection"]["kernel"]
    own = _vit.read(root / "experts" / "alpha", config) | {
        "visual_projection": {"kernel": kernel}
    }
    assert_same(_vit.read(tmp_path / "alone.safetensors", config, kernel), own)

    io.save(tmp_path / "merged", truth)
    assert_same(_vit.read(tmp_path / "merged", config), truth)

    half = {name: x.astype(np.float16) for name, x in base.items()}
    io.save(tmp_path / "half.safetensors", half)
    read = _vit.read(tmp_path / "half.safetensors", config)
    assert {x.dtype for x in jax.tree.leaves(read)} == {np.dtype(np.float32)}


def test_a_configuration_may_leave_out_what_is_usual(tmp_path):
    (tmp_path / "config.json").write_text('{"patch_size": 16}')
    assert _vit.read_config(tmp_path) == (
        768,
        3072,
        12,
        12,
        224,
        16,
        512,
        "quick_gelu",
        1e-5,
    )


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_head(root, metadata=None, **changes):
    path = root / "heads" / "alpha.safetensors"
    head = safetensors.numpy.load_file(path) | changes
    kept = {name: x for name, x in head.items() if x is not None}
    safetensors.numpy.save_file(kept, path, metadata)


def edit_expert(root, **changes):
    path = root / "experts" / "alpha" / "model.safetensors"
    expert = safetensors.numpy.load_file(path)
    expert |= {key.replace("__", "."): value for key, value in changes.items()}
    kept = {name: x for name, x in expert.items() if x is not None}
    safetensors.numpy.save_file(kept, path)


def without(*names):
    def remove(root):
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def one_training_image(root):
    for path in sorted((root / "images/beta/train").rglob("*.png"))[1:]:
        path.unlink()


WRONG = {
    "no base": (without("base"), r"base/config\.json is missing\. Copy the configuration"),
    "damaged configuration": (
        lambda r: (r / "base/config.json").write_text("{"),
        r"config\.json is damaged: .* Copy it again",
    ),
    "configuration without keys": (
        lambda r: (r / "base/config.json").write_text("[]"),
        r"config\.json is damaged",
    ),
    "negative size": (
        lambda r: edit_json(r / "base/config.json", hidden_size=-8),
        r"has 'hidden_size': -8, but it must be a positive integer",
    ),
    "odd activation": (
        lambda r: edit_json(r / "base/config.json", hidden_act="relu"),
        r"'hidden_act': 'relu', but what can be computed is 'quick_gelu', 'gelu'",
    ),
    "heads that do not divide": (
        lambda r: edit_json(r / "base/config.json", num_attention_heads=3),
        r"'hidden_size': 8, which 'num_attention_heads': 3 does not divide",
    ),
    "another expert": (
        lambda r: edit_json(r / "experts/alpha/config.json", patch_size=8),
        r"alpha/config\.json differs from that of the base in \['patch_size'\]",
    ),
    "base without weights": (
        lambda r: (without("base")(r), write_config(r / "base")),
        r"base is a folder without a checkpoint",
    ),
    "deeper than it is": (
        lambda r: (
            edit_json(r / "base/config.json", num_hidden_layers=3),
            edit_json(r / "experts/alpha/config.json", num_hidden_layers=3),
        ),
        r"base is not the image encoder .* lacks 'encoder\.layers\.2\.layer_norm1",
    ),
    "missing tensor": (
        lambda r: edit_expert(r, vision_model__pre_layrnorm__bias=None),
        r"experts/alpha is not .* it lacks 'pre_layrnorm\.bias'",
    ),
    "unknown tensor": (
        lambda r: edit_expert(r, classifier__weight=np.ones((2, 8))),
        r"experts/alpha is not .* it has 'classifier\.kernel' beyond it",
    ),
    "other shape": (
        lambda r: edit_expert(r, visual_projection__weight=np.ones((5, 8))),
        r"experts/alpha is not .* 'visual_projection\.kernel' has shape \(8, 5\), but \(8, 6",
    ),
    "missing shard": (
        without("experts/beta/model-00002-of-00002.safetensors"),
        r"names 2 shards, of which \['model-00002-of-00002\.safetensors'\] are missing",
    ),
    "no experts": (
        without("experts"),
        r"experts is no folder\. Put one there for each task",
    ),
    "no head": (
        without("heads/alpha.safetensors"),
        r"heads/alpha\.safetensors is missing\. Embed a text for each class",
    ),
    "half a head": (
        lambda r: edit_head(r, logit_scale=None),
        r"alpha\.safetensors has the tensors \['class_embeddings'\], but a head has",
    ),
    "narrow head": (
        lambda r: edit_head(r, class_embeddings=np.ones((3, 5), np.float32)),
        r"`class_embeddings` \(3, 5\) .* needs \[classes, 6\] and one number",
    ),
    "empty head": (
        lambda r: edit_head(r, class_embeddings=np.zeros((3, 6), np.float32)),
        r"alpha\.safetensors has a class without a direction",
    ),
    "negative scale": (
        lambda r: edit_head(r, logit_scale=np.array(-1, np.float32)),
        r"`logit_scale` -1\.0, which must be positive",
    ),
    "too few classes": (
        lambda r: edit_head(r, class_embeddings=np.ones((2, 6), np.float32)),
        r"tells 2 classes, but .*images/alpha/test has 3\. Give each class one row",
    ),
    "no list of classes": (
        lambda r: edit_head(r, {"classes": "bird, cat, dog"}),
        r"metadata 'classes': bird, cat, dog, but it must be a JSON list",
    ),
    "a class twice": (
        lambda r: edit_head(r, {"classes": '["cat", "cat", "dog"]'}),
        r"each once",
    ),
    "other classes": (
        lambda r: edit_head(r, {"classes": '["bird", "cat", "cow"]'}),
        r"test lacks the classes \['cow'\] and has \['dog'\], which are none",
    ),
    "no test": (without("images/beta/test"), r"images/beta/test is no folder"),
    "class missing": (
        without("images/alpha/train/cat"),
        r"alpha/train lacks the classes \['cat'\]\. It must have one folder for each of the 3",
    ),
    "no images": (
        without(*(f"images/beta/test/{name}/0.png" for name in CLASSES)),
        r"images/beta/test has no images\. Put \.bmp, ",
    ),
    "one image": (
        one_training_image,
        r"beta/train has one image, and none is left for val",
    ),
    "nothing held out": (
        without("held_out"),
        r"held_out/images is no folder\. Put one there for each task without an expert",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_missing_or_wrong_is_said_before_any_work(
    name, written, tmp_path, monkeypatch
):
    def too_early(*_):
        raise AssertionError("work was begun")

    monkeypatch.setattr(_vit, "read", too_early)
    monkeypatch.setattr(_images, "read", too_early)
    spoil, message = WRONG[name]
    root = tmp_path / "copy"
    shutil.copytree(written[0], root)
    spoil(root)
    with pytest.raises(ValueError, match=message):
        clip8.load(0, folder=root)


def test_wrong_arguments_and_damaged_images_are_named(written, tmp_path):
    with pytest.raises(
        ValueError, match=r"`num_test` is 0, but must be at least 1, or None"
    ):
        clip8.load(0, folder=written[0], num_test=0)
    with pytest.raises(ValueError, match=r"`folder` is nowhere, which is no folder"):
        clip8.load(0, folder="nowhere")
    sound = next((written[0] / "images").rglob("*.png")).read_bytes()
    for data in (b"no image", sound[:-30]):
        path = tmp_path / "damaged.png"
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"damaged\.png cannot be read as an image: .*"
        ):
            _images.read([_images.Example(path, 0)], 8)


def test_a_merge_that_gives_all_zeros_has_logits_and_a_derivative():
    value, gradient = jax.jit(jax.value_and_grad(lambda x: clip8._unit(x).sum()))(
        jnp.zeros((1, 6))
    )
    assert value == 0
    assert np.isfinite(gradient).all()

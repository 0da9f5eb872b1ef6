"""Texts that people rated from very negative to very positive: the data of VADER."""

import html
import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Shaped

PACKAGE = "vaderSentiment==0.5"  # later versions leave the texts out
ARCHIVE = "vaderSentiment-0.5.zip"
SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
FILES = {
    "tweets": "tweets",
    "amazon": "amazonReviewSnippets",
    "movies": "movieReviewSnippets",
    "nyt": "nytEditorialSnippets",
}
_INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_FOLDER = "hutto_ICWSM_2014"


class Texts(NamedTuple):
    """Texts, each with the mean of several people's ratings.

    Attributes:
        texts: No two are the same.
        ratings: From -4, extremely negative, to 4, extremely positive.
        documents: Names; texts of one review or article share theirs.
    """

    texts: Shaped[np.ndarray, " texts"]
    ratings: Float[np.ndarray, " texts"]
    documents: Shaped[np.ndarray, " texts"]

    def take(self, rows: np.ndarray) -> Self:
        """Pick texts, by number or by truth."""
        return self._replace(**{k: x[rows] for k, x in self._asdict().items()})


def read(archive: Path) -> tuple[dict[str, Texts], Texts]:
    """Read the texts of each domain in `FILES`, and the words of the lexicon.

    Of the lexicon come the entries that are made of letters, and no emoticons.

    Args:
        archive: The source archive of the package.

    References:
        Hutto & Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
        Social Media Text*, ICWSM 2014.
    """
    with zipfile.ZipFile(archive) as outer:
        inner = io.BytesIO(outer.read(_INNER))
    with tarfile.open(fileobj=inner) as tar:
        domains = {
            # Texts of one document are numbered 12_1, 12_2, ...
            name: _texts(
                (html.unescape(text), rating, number.split("_")[0])
                for number, rating, text in _rows(tar, f"{file}_GroundTruth.txt", "utf-8")
            )
            for name, file in FILES.items()
        }
        lexicon = _rows(tar, "vader_sentiment_lexicon.txt", "latin-1")
    words = ((word, rating, word) for word, rating, *_ in lexicon if word.isalpha())
    return domains, _texts(words)


def _rows(tar: tarfile.TarFile, file: str, encoding: str) -> list[list[str]]:
    member = tar.extractfile(f"{_FOLDER}/{file}")
    assert member is not None
    # Not `splitlines`, which also splits at characters that stand in the texts.
    lines = member.read().decode(encoding).replace("\r\n", "\n").split("\n")
    return [line.split("\t") for line in lines if line.strip()]


def _texts(rows: Iterable[tuple[str, str, str]]) -> Texts:
    found: dict[str, tuple[str, str]] = {}
    for text, rating, document in rows:
        found.setdefault(text.strip(), (rating, document))
    ratings, documents = zip(*found.values(), strict=True)
    return Texts(np.array([*found], object), np.array(ratings, float), np.array(documents))

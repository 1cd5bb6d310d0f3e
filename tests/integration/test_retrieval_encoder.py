from __future__ import annotations

import numpy as np
import pytest

from memoryd.engine.retrieval_encoder import RetrievalEncoder, load_retrieval_encoder
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> RetrievalEncoder:
    return load_retrieval_encoder(tmp_path_factory.mktemp("data"))


def test_unit_vectors_in_the_order_of_the_texts(encoder: RetrievalEncoder) -> None:
    texts = ["A cat sleeps on the sofa.", "word " * 300, "The stock market fell.", "", "A kitten naps on the couch."]
    vectors_ND = encoder.encode(texts)
    assert vectors_ND.shape == (5, 384)
    assert vectors_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    near = vectors_ND @ vectors_ND[0]
    assert near[4] > 0.6 > 0.3 > near[2]


def test_batching_changes_nothing(encoder: RetrievalEncoder) -> None:
    texts = [f"Text number {n} " + "and more " * n for n in range(20)]
    together, alone = encoder.encode(texts), np.concatenate([encoder.encode([t]) for t in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_texts(encoder: RetrievalEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_the_torch_free_tokenizer_counts_the_same(encoder: RetrievalEncoder) -> None:
    texts = ["Łódź, 東京 and 7 o'clock!", "plain words", "word " * 400]
    theirs = [len(ids) - 2 for ids in encoder._tokenizer(texts, truncation=False)["input_ids"]]
    assert RetrievalTokenizer().count_batch(texts) == theirs

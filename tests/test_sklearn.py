"""The transformer keeps scikit-learn's conventions to the letter, and fits what the program fits."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import stochcl
from stochcl.errors import OutputError, UsageError
from stochcl.sklearn import EmbeddingCoder


def small(**changes):
    return EmbeddingCoder(**{"latents": 8, "steps": 4, "entropy": "independent"} | changes)


@parametrize_with_checks([small(), small(output="vectors")])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


@pytest.fixture(scope="module")
def fitted(digits):
    return EmbeddingCoder(latents=32, steps=100, entropy="independent", random_state=0).fit(digits[0])


def test_a_missed_rate_is_warned_of():
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"the codes take .* bits per row, not 100 as asked"):
        small(rate=100, posterior="bernoulli").fit(x)  # of eight bits


def test_symbols_decode_to_vectors_in_the_units_of_the_input(fitted, digits):
    x = digits[0]
    symbols = fitted.transform(x)
    assert (symbols.dtype, symbols.shape) == (np.uint8, (1797, 32))
    vectors = fitted.inverse_transform(symbols)
    assert (vectors.dtype, vectors.shape) == (np.float32, x.shape)
    error = np.square(x - vectors).sum() / np.square(x - x.mean(axis=0)).sum()
    assert error < 0.7
    direct = clone(fitted).set_params(output="vectors").fit(x)
    assert np.array_equal(direct.transform(x), vectors)
    assert np.array_equal(direct.inverse_transform(vectors), vectors)


def test_more_latents_keep_more(fitted, digits):
    x, errors = digits[0], []
    whole = fitted.transform(x)
    for kept in (8, 32):
        narrow = pickle.loads(pickle.dumps(fitted)).set_params(kept=kept)
        assert narrow.transform(x).shape == (len(x), kept)
        assert len(narrow.get_feature_names_out()) == kept
        errors.append(np.square(x - narrow.inverse_transform(whole[:, :kept])).sum())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("posterior", ["categorical", "gaussian"])
def test_symbols_of_more_values(digits, posterior):
    coder = small(posterior=posterior, alphabet=5, random_state=0)
    symbols = coder.fit_transform(digits[0][:200])
    assert symbols.shape == (200, 8)
    assert 1 < symbols.max() < 5
    assert coder.inverse_transform(symbols).shape == (200, 64)
    with pytest.raises(ValueError, match="integers of 0 to 4"):
        coder.inverse_transform(symbols + 5)


def test_a_saved_model_gives_the_same_codes_to_the_program(fitted, digits, tmp_path):
    x = digits[0].astype(np.float32)
    fitted.save(tmp_path / "head.safetensors")
    np.save(tmp_path / "x.npy", x)
    report = stochcl.load(tmp_path / "head.safetensors", device="cpu").compress(
        tmp_path / "x.npy", tmp_path / "a.bin"
    )
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert np.array_equal(archive.to_numpy(), fitted.transform(x))
        vectors = fitted.inverse_transform(fitted.transform(x))
        np.testing.assert_allclose(archive.to_vectors(), vectors, rtol=1e-5, atol=1e-4)  # of numbers up to 16
    assert report.parts["codes"] * 8 / len(x) == pytest.approx(fitted.rate_, rel=0.2)
    assert fitted.codec().model.sha256 == report.model_sha256
    with pytest.raises(OutputError, match="cannot be written"):
        fitted.save(tmp_path / "no folder" / "head.safetensors")


def test_it_is_unpickled_without_torch(fitted, digits, tmp_path):
    (tmp_path / "coder.pickle").write_bytes(pickle.dumps(fitted))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).rate_, 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "coder.pickle")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{fitted.rate_} False\n"
    again = pickle.loads((tmp_path / "coder.pickle").read_bytes())
    assert np.array_equal(again.transform(digits[0]), fitted.transform(digits[0]))


def test_a_pipeline_on_decoded_vectors_classifies(digits):
    x, y = digits
    coder = EmbeddingCoder(latents=32, output="vectors", steps=100, entropy="independent", random_state=0)
    pipe = make_pipeline(coder, StandardScaler(), LogisticRegression(max_iter=300)).fit(x[:1200], y[:1200])
    assert pipe.score(x[1200:], y[1200:]) > 0.75


def test_a_grid_search_runs_over_its_parameters(digits):
    x, y = digits[0][:300], digits[1][:300]
    pipe = make_pipeline(small(random_state=0), StandardScaler(), LogisticRegression(max_iter=500))
    grid = {"embeddingcoder__latents": [4, 16], "embeddingcoder__output": ["symbols", "vectors"]}
    search = GridSearchCV(pipe, grid, cv=2).fit(x, y)
    assert len(search.cv_results_["mean_test_score"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_columns_are_named(digits):
    names = small(random_state=0).fit(digits[0][:50]).get_feature_names_out()
    assert list(names[:2]) == ["embeddingcoder0", "embeddingcoder1"]


def test_the_random_state_decides_and_that_of_torch_is_left_alone(digits):
    x = digits[0][:200]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again, other = (small(random_state=seed).fit(x).codec().model.sha256 for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == again
    assert first != other


def test_many_rows_are_encoded_in_parts(fitted, digits, monkeypatch):
    whole = fitted.transform(digits[0])
    monkeypatch.setattr("stochcl.sklearn._ROWS", 100)
    assert np.array_equal(fitted.transform(digits[0]), whole)


def test_a_mapped_matrix_is_taken_as_it_is(fitted, digits, tmp_path):
    np.save(tmp_path / "x.npy", digits[0].astype(np.float16))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.array_equal(fitted.transform(mapped), fitted.transform(np.array(mapped)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "bits"}, "output must be symbols or vectors, got 'bits'"),
        ({"kept": 9}, "kept must be 1 to 8 latents, got 9"),
        ({"latents": 0}, "latents"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"rate": -1.0}, "rate must be more than 0"),
        ({"posterior": "dirichlet"}, "posterior must be"),
        ({"objective": "guess"}, "objective must be"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_fit(digits, changes, message):
    with pytest.raises(UsageError, match=message):
        small(**changes).fit(digits[0][:50])


def test_what_is_no_code_is_not_decoded(fitted):
    for wrong, message in (
        (np.full((2, 32), 2), "integers of 0 to 1"),
        (np.full((2, 32), 0.5), "integers of 0 to 1"),
        (np.full((2, 32), -1), "integers of 0 to 1"),
        (np.zeros((2, 31), int), "32 columns, and this has 31"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted.inverse_transform(wrong)


def test_importing_it_does_not_import_torch():
    code = "import sys, stochcl.sklearn; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]

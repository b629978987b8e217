"""Images and rows of archives as codes: the contract that scikit-learn's own checks, of matrices, cannot see."""

import os
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

import stochcl
from stochcl.errors import ImageError, ModelMismatch, UsageError
from stochcl.sklearn import CodesTransformer
from tests.compress.making import make_codes, make_names, make_tables, write


@pytest.fixture
def names(codes):
    with stochcl.open(codes) as archive:
        return list(archive.names)


@pytest.mark.parametrize("output", ["symbols", "vectors"])
@pytest.mark.parametrize("latents", [None, 8])
def test_paths_and_names_give_what_the_archive_holds(codes, images, model, names, output, latents):
    with stochcl.open(codes) as archive:
        expected = archive.to_numpy(latents) if output == "symbols" else archive.to_vectors(latents)
    some = [5, 2, 40, 2]
    rows = CodesTransformer(archive=codes, output=output, latents=latents).fit(names)
    # Of four rows, a processor may sum in another order than of all.
    np.testing.assert_allclose(rows.transform([names[i] for i in some]), expected[some], rtol=1e-5, atol=1e-6)
    encoder = CodesTransformer(model, output=output, latents=latents, batch_size=3, device="cpu")
    found = encoder.fit_transform([images / names[i] for i in some])
    np.testing.assert_allclose(found, expected[some], atol=1e-5)
    assert found.dtype == expected.dtype
    assert len(encoder.get_feature_names_out()) == expected.shape[1]
    assert encoder.model_sha256_ == rows.model_sha256_


def test_the_tags_say_that_rows_are_texts_and_that_nothing_is_kept_of_their_type():
    tags = get_tags(CodesTransformer())
    assert (tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string) == (True, False, True)
    assert tags.no_validation
    assert tags.transformer_tags.preserves_dtype == []
    assert not tags.target_tags.required


def test_clone_pickle_joblib_and_unfitted(codes, names, tmp_path):
    from sklearn.exceptions import NotFittedError

    rows = CodesTransformer(archive=str(codes)).fit(names)
    joblib.dump(rows, tmp_path / "rows")
    for copy in (pickle.loads(pickle.dumps(rows)), joblib.load(tmp_path / "rows")):
        np.testing.assert_array_equal(copy.transform(names[:3]), rows.transform(names[:3]))
    assert clone(rows).get_params() == rows.get_params()
    with pytest.raises(NotFittedError):
        clone(rows).transform(names)


def test_the_model_is_loaded_once_and_again_where_its_file_changes(images, model, names, tmp_path, monkeypatch):
    from stochcl.api import encode

    loads, load = [], encode.load_model
    monkeypatch.setattr(encode, "load_model", lambda path: loads.append(path) or load(path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(model.read_bytes())
    rows, some = CodesTransformer(path, device="cpu"), [images / name for name in names[:2]]
    before = rows.fit(some).transform(some)
    rows.transform(some)
    assert len(loads) == 1
    copy = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 2000  # without the model
    np.testing.assert_array_equal(copy.transform(some), before)
    assert len(loads) == 2
    os.utime(path, ns=(0, 0))
    rows.transform(some)
    clone(rows).fit(some)
    assert len(loads) == 4


@pytest.mark.parametrize("kind", [list, np.array, lambda names: np.array(names, object)[:, None]])
def test_in_a_pipeline_and_a_grid_search(codes, names, kind):
    pipe = make_pipeline(CodesTransformer(archive=codes), StandardScaler(), LogisticRegression())
    grid = {"codestransformer__latents": [4, 32], "codestransformer__output": ["symbols", "vectors"]}
    search = GridSearchCV(pipe, grid, cv=2).fit(kind(names), [name.split("/")[0] for name in names])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_an_archive_is_looked_up_without_torch(codes, names):
    code = (
        "import sys; from stochcl.sklearn import CodesTransformer as C;"
        "print(C(archive=sys.argv[1]).fit_transform(sys.argv[2:]).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, codes, *names[:2]], capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 32) False\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "bits"}, "output must be symbols or vectors, got 'bits'"),
        ({"latents": 33}, "latents must be 1 to 32, got 33"),
        ({"latents": 0}, "latents must be 1 to 32, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_fit(codes, names, changes, message):
    with pytest.raises(UsageError, match=message):
        CodesTransformer(archive=codes, **changes).fit(names)


def test_what_are_no_paths_or_other_rows_or_another_model(codes, names, model, images, tmp_path):
    rows = CodesTransformer(archive=codes).fit(names)
    for wrong, message in (
        ("a.png", "put it into a list"),
        ([], "at least one"),
        (np.zeros((3, 2)), "paths have shape"),
        ([1.5], "row 0: a path is text, not float"),
        (["nowhere.png"], "it has no row 'nowhere.png'"),
    ):
        with pytest.raises(UsageError, match=message):
            rows.transform(wrong)
    other = write(tmp_path / "o.bin", make_codes(30, 32, names=make_names(30)), make_tables(32))
    with pytest.raises(ModelMismatch, match="as in fit"):
        rows.set_params(archive=other).transform(make_names(2))
    encoder = CodesTransformer(model, device="cpu").fit(["a"])
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(ImageError, match=r"bad\.png"):
        encoder.transform([tmp_path / "bad.png"])

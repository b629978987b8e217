"""What others do to embeddings: codes of the size asked for, vectors from nothing but what is counted, and seeds."""

from functools import cache

import numpy as np
import pytest

from stochcl.benchmarks import baselines
from stochcl.benchmarks.baselines import Itq, PrincipalScalar, RaBitQ, RandomSigns, fit_and_code
from stochcl.benchmarks.inputs import BASELINES, FLOATS
from stochcl.benchmarks.probes import relative_error
from stochcl.benchmarks.quantisers import OptimisedProduct, Product, Residual
from stochcl.codes import Codes
from stochcl.errors import MissingExtraError, SourceError, UsageError

WIDTH, BITS = 24, 16


def make(rows, seed=0, width=WIDTH):
    """Vectors around a few centres, correlated, off the origin and of uneven scale."""
    rng = np.random.default_rng(99)
    centres, mixing = rng.normal(0, 2, (5, width)), rng.normal(0, 1, (width, width)) / width**0.5
    rng = np.random.default_rng(seed)
    x = centres[rng.integers(5, size=rows)] + rng.normal(0, 1, (rows, width)) @ mixing
    return (x * np.geomspace(1, 4, width) + 3).astype(np.float32)


TRAIN, TEST = make(1200), make(300, seed=1)
EVERY = {**{name: (kind, BITS) for name, kind in BASELINES.items()}, **{
    name: (kind, kind.bits_of(WIDTH)) for name, kind in FLOATS.items()
}}  # fmt: skip


@cache
def fit(name, bits=None):
    """A method fitted once for all tests."""
    kind, usual = EVERY[name]
    return kind.fit(TRAIN, bits or usual, 0)


@pytest.fixture
def fitted(request):
    return fit(request.param)


each = pytest.mark.parametrize("fitted", EVERY, indirect=True)


@each
def test_codes_are_of_the_size_asked_for_and_decode_in_the_units_of_the_input(fitted):
    codes, kind = fitted.codes(TEST), type(fitted)
    vectors = fitted.vectors(codes)
    assert len(codes) == len(TEST)
    assert (vectors.dtype, vectors.shape) == (np.float32, TEST.shape)
    if kind is not PrincipalScalar:  # packed, its symbols are wider than what they are worth
        assert codes.decisions_per_row == next(bits for k, bits in EVERY.values() if k is kind)
    limit = {"float32": 1e-12, "float16": 1e-6, "int8": 1e-3}.get(kind.name, 0.8)
    assert relative_error(TEST, vectors, TRAIN.mean(axis=0)) < limit


@each
def test_the_same_seed_gives_the_same_codes(fitted):
    kind, bits = next(entry for entry in EVERY.values() if entry[0] is type(fitted))
    assert (kind.fit(TRAIN, bits, 0).codes(TEST).packed == fitted.codes(TEST).packed).all()


@each
def test_decoding_uses_what_is_counted_and_nothing_else(fitted):
    codes, before = fitted.codes(TEST), fitted.side_bytes
    assert before == sum(array.size * 2 for array in fitted.side)
    assert all(array.dtype == np.float16 for array in fitted.side)
    kept = [array.copy() for array in fitted.side]
    try:
        for array in fitted.side:
            array.fill(0)
        erased = fitted.vectors(codes)
    finally:
        for array, old in zip(fitted.side, kept, strict=True):
            array[:] = old
    if type(fitted) is RaBitQ:  # its rotation is a seed, and is not erased
        assert fitted.vectors(codes) - erased == pytest.approx(np.broadcast_to(kept[0], erased.shape), abs=1e-3)
    else:
        assert not erased.any() or not kept


@pytest.mark.parametrize("name", ["random-signs", "itq", "pq", "opq", "rq", "rq-4bit", "lsq"])
def test_another_seed_gives_other_codes(name):
    kind, bits = EVERY[name]
    other = kind.fit(TRAIN, bits, 1).codes(TEST)
    assert (other.packed != fit(name).codes(TEST).packed).any()


@pytest.mark.parametrize("name", BASELINES)
def test_more_bits_make_less_error(name):
    mean = TRAIN.mean(axis=0)
    few, many = fit(name, 8), fit(name, 24)
    errors = [relative_error(TEST, method.vectors(method.codes(TEST)), mean) for method in (few, many)]
    assert errors[1] < 0.9 * errors[0]


def test_bits_cut_directions_at_their_medians():
    fitted = RandomSigns.fit(TRAIN, 40, 0)  # more than columns
    share = fitted.codes(TRAIN).decisions().mean(axis=0)
    assert share == pytest.approx(np.full(40, 0.5), abs=0.01)
    assert fitted.directions[:WIDTH] @ fitted.directions[:WIDTH].T == pytest.approx(np.eye(WIDTH), abs=1e-5)


def test_least_squares_are_no_worse_than_the_mean_of_each_side_projected_back():
    fitted = RandomSigns.fit(TRAIN, BITS, 0)
    ones, mean = fitted.codes(TRAIN).decisions(), TRAIN.mean(axis=0)
    projected = (TRAIN - mean) @ fitted.directions.T
    sides = [(projected * (ones == bit)).sum(axis=0) / (ones == bit).sum(axis=0) for bit in (0, 1)]
    plain = np.where(ones, sides[1], sides[0]) @ fitted.directions + mean
    least = relative_error(TRAIN, fitted.vectors(fitted.codes(TRAIN)), mean)
    assert least <= relative_error(TRAIN, plain.astype(np.float32), mean) + 1e-4


def test_itq_turns_principal_directions_towards_their_signs(monkeypatch):
    def lost(fitted):
        projected = TRAIN @ fitted.directions.T - fitted.thresholds
        scale = np.abs(projected).mean()
        return np.square(projected - scale * np.sign(projected)).mean()

    turned = Itq.fit(TRAIN, 8, 0)
    assert turned.directions @ turned.directions.T == pytest.approx(np.eye(8), abs=1e-4)
    monkeypatch.setattr(baselines, "_ITQ_STEPS", 0)
    assert lost(turned) < 0.8 * lost(Itq.fit(TRAIN, 8, 0))


def test_columns_that_do_not_split_evenly_are_filled_up():
    fitted = Product.fit(TRAIN[:, :22], 32, 0)  # four groups of six
    assert fitted.centroids.shape == (4, 256, 6)
    assert fitted.vectors(fitted.codes(TEST[:, :22])).shape == (300, 22)


def test_small_indices_are_unpacked_in_their_order():
    fitted = BASELINES["rq-4bit"].fit(TRAIN, 20, 0)  # five indices: half a byte is left over
    codes = fitted.codes(TEST)
    assert (codes.latents, codes.alphabet, codes.decisions_per_row) == (5, 16, 20)
    right = relative_error(TEST, fitted.vectors(codes), TRAIN.mean(axis=0))
    swapped = Codes.from_symbols(codes.symbols()[:, [1, 0, 3, 2, 4]], alphabet=16)
    assert right < 0.5 < relative_error(TEST, fitted.vectors(swapped), TRAIN.mean(axis=0))


def test_a_step_makes_the_entropy_that_was_asked_for():
    for bits in (10, 60):
        fitted = PrincipalScalar.fit(TRAIN, bits, 0)
        counts = [np.bincount(column) / 1200 for column in fitted.codes(TRAIN).symbols().T]
        entropy = -sum((p[p > 0] * np.log2(p[p > 0])).sum() for p in counts)
        assert entropy == pytest.approx(bits, rel=0.05)


def test_a_quantiser_of_a_given_step_errs_by_half_of_it():
    fitted = PrincipalScalar.at_step(TRAIN, 0.5, np.ones(WIDTH, bool))
    vectors = fitted.vectors(fitted.codes(TRAIN))
    assert np.sqrt(np.square(TRAIN - vectors).mean()) == pytest.approx(0.5 / 12**0.5, rel=0.05)
    far = fitted.codes(np.concatenate([TEST, -TEST]) * 100).symbols().max(axis=0)  # clipped to what training rows had
    assert (far == fitted.codes(TRAIN).symbols().max(axis=0)).all()


@pytest.mark.parametrize(
    ("name", "bits", "message"),
    [
        ("pca-signs", 25, "at most 24 principal directions, not 25"),
        ("itq", 25, "at most 24 principal directions, not 25"),
        ("pq", 12, "8 bits an index and up to 24 indices, not 12"),
        ("opq", 200, "up to 24 indices, not 200"),
        ("rq", 0, "up to 512 indices, not 0"),
        ("lsq", 72, "up to 8 indices, not 72"),
        ("rq-4bit", 6, "4 bits an index and up to 512 indices, not 6"),
        ("pca-scalar", 10_000, "at the finest step"),
        ("float16", 5, "384 bits a row, not 5"),
        ("int8", 5, "192 bits a row, not 5"),
    ],
)
def test_sizes_that_a_code_cannot_have(name, bits, message):
    with pytest.raises(UsageError, match=message):
        fit_and_code(EVERY[name][0], TRAIN, [TEST], bits, 0)


@pytest.mark.parametrize(
    ("name", "rows"), [("itq", 1), ("pq", 511), ("rq", 511), ("lsq", 511), ("pca-scalar", 255), ("int8", 1)]
)
def test_too_few_rows_to_learn_from(name, rows):
    kind, bits = EVERY[name]
    with pytest.raises(SourceError, match=f"got {rows}"):
        fit_and_code(kind, TRAIN[:rows], [TEST], bits, 0)


@pytest.mark.parametrize("name", ["random-signs", "pq", "pca-scalar", "int8"])
def test_columns_that_are_constant(name):
    flat = TRAIN.copy()
    flat[:, ::2] = 7
    kind, bits = EVERY[name]
    fitted = kind.fit(flat, bits, 0)
    assert fitted.vectors(fitted.codes(flat))[:, ::2] == pytest.approx(np.full((1200, 12), 7), rel=0.01)


def test_numbers_beyond_float16_are_refused_where_they_would_be_stored():
    with pytest.raises(SourceError, match="too large for float16"):
        RandomSigns.fit(TRAIN * 1e5, BITS, 0)


@pytest.mark.parametrize("name", ["pq", "opq", "rq", "rq-4bit", "lsq"])
def test_without_faiss_one_sentence_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr("stochcl.benchmarks.run.find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=r"faiss-cpu; install it with: pip install 'stochcl\[bench\]'\."):
        fit_and_code(BASELINES[name], TRAIN, [TEST], BITS, 0)


def test_a_rotation_is_not_learned_from_fewer_rows_than_columns():
    # faiss 1.15 writes beyond its memory there: OPQMatrix(960, 2).train of 900 rows ends in munmap_chunk().
    with pytest.raises(SourceError, match="as many rows as columns"):
        OptimisedProduct.check(800, 960, 16)
    OptimisedProduct.check(960, 960, 16)
    with pytest.raises(SourceError, match="as many rows as columns"):
        OptimisedProduct.check(20_000, 16_385, 8)  # more rows are not taken


@pytest.mark.parametrize("name", ["opq", "rq-4bit", "lsq"])
def test_native_baselines_are_the_same_in_a_process_of_their_own(name):
    kind = BASELINES[name]
    method, (train, test) = fit_and_code(kind, TRAIN, [TRAIN, TEST], BITS, 0)
    here = kind.fit(TRAIN, BITS, 0)
    assert (test.packed == here.codes(TEST).packed).all()
    assert len(train) == len(TRAIN)
    assert (method.vectors(test) == here.vectors(test)).all()
    assert method.quantise is None


def test_residual_quantisation_has_a_row_for_each_beam_and_trial():
    assert [name for name, _ in Residual.variants((4, 8), 2)] == [
        ", beam 4", ", beam 4, trial 1", ", beam 8", ", beam 8, trial 1",
    ]  # fmt: skip
    narrow, wide, other = (Residual.fit(TRAIN, 24, 0, **more).codes(TEST).packed
                           for more in ({"beam": 1}, {"beam": 8}, {"beam": 8, "trial": 1}))  # fmt: skip
    assert (narrow != wide).any()
    assert (wide != other).any()


def test_rabitq_estimates_as_faiss_does():
    faiss = pytest.importorskip("faiss")
    fitted = RaBitQ.fit(TRAIN, RaBitQ.bits_of(WIDTH), 0)
    rotated = np.ascontiguousarray((TEST - fitted.centroid.astype(np.float32)) @ fitted._rotation().T)
    theirs = faiss.RaBitQuantizer(WIDTH, faiss.METRIC_L2)
    theirs.train(rotated)
    centroid = np.zeros(WIDTH, np.float32)
    codes = np.zeros((len(TEST), theirs.code_size), np.uint8)
    swig = faiss.swig_ptr
    theirs.compute_codes_core(swig(rotated), swig(codes), len(TEST), swig(centroid))
    decoded = np.zeros_like(rotated)
    theirs.decode_core(swig(codes), swig(decoded), len(TEST), swig(centroid))
    ours = fitted.vectors(fitted.codes(TEST)) - fitted.centroid.astype(np.float32)
    assert ours @ fitted._rotation().T == pytest.approx(decoded, rel=2e-3, abs=1e-2)

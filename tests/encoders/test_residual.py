"""Residual latents: the search, the signs, the distances along a code, and what a decoder makes of it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.encoders import layout
from stochcl.encoders.config import EncoderConfig, residual_ladder, residual_stages
from stochcl.encoders.latents import Latents, WordSearch
from stochcl.errors import UsageError
from stochcl.training.words import on_grid

STAGES = (3, 2, 2, 1, 1)
WIDTH = 5


def make_latents(stages=STAGES, seed=0, columns=WIDTH, words=None, temperature=1.0):
    """Latents whose points are the features themselves, and the tensors that they are made of."""
    rng = np.random.default_rng(seed)
    config = EncoderConfig(
        backbone=f"features:{columns}", posterior="residual", latents=sum(stages), stages=stages, reduced=columns,
        temperature=temperature,
    )  # fmt: skip
    shapes = layout.shapes_of(config)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("decoder.signs", *(n for n in tensors if "books" in n)):
        if tensors[name].size:
            tensors[name] = on_grid(
                tensors[name] / (8 if "signs" in name else 1), axis=1 if "signs" in name else None
            )
    tensors |= {"head.weight": np.eye(columns, dtype=np.float32), "head.mean": np.zeros(columns, np.float32)}
    tensors |= {"decoder.output": np.eye(columns, dtype=np.float32), "decoder.centre": np.zeros(columns, np.float32)}
    tensors |= {"norm.centre": np.zeros(columns, np.float32), "norm.scale": np.ones(1, np.float32)} | (words or {})
    return Latents.of(config, tensors), tensors


def make_books(sizes, seed, width=4):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(size, width)).astype(np.float32) for size in sizes]


def make_points(rows=40, columns=WIDTH, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def nearest(books, points, **options):
    search = WordSearch(books, points.shape[1])
    return search.nearest(search.distances(points), len(books), **options) - np.array(search.ends[:-1])


def softmax_entropy(distances, temperature):
    p = np.exp(-distances / temperature - np.max(-distances / temperature, axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return -(p * np.log2(np.maximum(p, 1e-30))).sum(axis=1)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=3), st.integers(0, 1000))
def test_a_search_of_full_width_finds_the_nearest_of_all_sums(sizes, seed):
    books, points = make_books(sizes, seed), make_points(7, 4, seed + 1)
    every = list(itertools.product(*(range(size) for size in sizes)))
    sums = np.stack([sum(book[name] for book, name in zip(books, names, strict=True)) for names in every])
    found = nearest(books, points, width=len(every))
    reached = sum(book[names] for book, names in zip(books, found.T, strict=True))
    best = np.square(points[:, None] - sums).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(np.square(points - reached).sum(axis=1), best, rtol=1e-5)


def test_a_search_of_many_rows_is_that_of_each():
    books, points = make_books([8, 8, 4], 0), make_points(600, 4)
    found = nearest(books, points)
    for some in (slice(0, 1), slice(250, 260), slice(590, 600)):
        np.testing.assert_array_equal(nearest(books, points[some]), found[some])
    assert len(nearest(books, points[:0])) == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_distances_from_products_of_words_are_those_of_what_is_left(seed, stage):
    books, points = make_books([4, 8, 2, 4, 8], seed), make_points(6, 4, seed)
    search = WordSearch(books, 4)
    rng = np.random.default_rng(seed)
    names = np.stack([rng.integers(0, len(b), (6, 3)) for b in books[:stage]], axis=2)
    left = points[:, None] - sum(book[names[:, :, s]] for s, book in enumerate(books[:stage]))
    direct = np.square(left[:, :, None] - books[stage]).sum(axis=3) - np.square(left).sum(axis=2)[:, :, None]
    places = names + np.array(search.ends[:stage])
    found = search.after(search.distances(points), places, stage)
    # What the words before leave of a point is the same for all of a stage's words, and left out.
    np.testing.assert_allclose(found - found[:, :, :1], direct - direct[:, :, :1], rtol=1e-4, atol=1e-3)


def test_signs_of_axes_that_cross_are_chosen_one_after_the_other():
    signs = np.array([[2.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0], [0.5, 0.5, 0.0]], np.float32)
    latents, _ = make_latents((1, 1, 1, 1), columns=3, words={"decoder.signs": signs})
    left = make_points(50, 3)
    found = latents.symbols(left, 4)
    for j, sign in enumerate(signs):
        np.testing.assert_array_equal(found[:, j], left @ sign > 0)
        left = left - (2.0 * found[:, j : j + 1] - 1) * sign


@pytest.mark.parametrize("stages", [STAGES, (1, 1, 1), (4,), (2, 2)])
def test_distances_along_a_code_are_those_of_what_its_words_leave(stages):
    latents, tensors = make_latents(stages)
    points, symbols = make_points(), np.random.default_rng(2).integers(0, 2, (40, sum(stages)))
    words, names = layout.words(latents.config, tensors), latents.names(symbols)
    products = latents.sign_products(points, symbols)
    along = [*latents.word_distances(points, symbols), *(np.stack([2 * p, -2 * p], axis=1) for p in products.T)]
    at, left = 0, points
    for bits, book, name, found in zip(stages, words, names.T, along, strict=True):
        written = [int("".join(map(str, row)), 2) for row in symbols[:, at : at + bits]]
        np.testing.assert_array_equal(name, written)
        direct = np.square(left[:, None] - book).sum(axis=2)
        np.testing.assert_allclose(found - found[:, :1], direct - direct[:, :1], rtol=1e-4, atol=1e-4)
        at, left = at + bits, left - book[name]


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("latents", range(1, 10))
def test_every_prefix_decodes_to_its_words_and_the_means_of_what_they_leave_open(latents, mapped):
    family, tensors = make_latents()
    symbols = family.symbols(make_points(), 9)
    expected, at = np.zeros((40, WIDTH), np.float32), 0
    for bits, book in zip(STAGES, layout.words(family.config, tensors), strict=True):
        kept = min(bits, max(0, latents - at))
        if kept:
            name = symbols[:, at : at + kept] @ (1 << np.arange(kept)[::-1])
            expected += book.reshape(1 << kept, -1, WIDTH).mean(axis=1)[name]
        at += bits
    if not mapped:
        tensors = {name: a for name, a in tensors.items() if name not in ("decoder.output", "decoder.centre")}
    decoder = layout.vector_decoder(family.config, tensors)
    np.testing.assert_allclose(decoder.decode(symbols[:, :latents]), expected, rtol=1e-4, atol=1e-4)


def test_stages_that_make_no_code_are_refused():
    for stages in ((3, 1, 5), (9,), (3, 3), (0, 9)):
        with pytest.raises(UsageError, match="stages"):
            EncoderConfig(posterior="residual", latents=9, stages=stages)
    with pytest.raises(UsageError, match="only residual"):
        EncoderConfig(stages=(8, 8))
    with pytest.raises(UsageError, match="1 to 512 bits"):
        EncoderConfig(posterior="residual", latents=513)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 512), st.integers(1, 8), st.sampled_from(["images", "vectors"]))
def test_the_ladder_has_ends_of_stages_only(latents, most, kind):
    stages = residual_stages(latents, most, kind)
    assert sum(stages) == latents
    assert max(stages) <= most
    ladder = residual_ladder(stages)
    assert set(ladder) <= set(np.cumsum(stages).tolist())
    assert ladder[-1] == latents
    assert list(ladder) == sorted(set(ladder))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_a_code_of_the_first_stages_is_searched_for_itself(seed):
    """It is nearer to the point than the full code's prefix is, and its first name is the nearest word."""
    latents, tensors = make_latents(seed=seed)
    points, decoder = make_points(30, seed=seed), layout.vector_decoder(latents.config, tensors)
    whole = latents.symbols(points, 9)
    for width in (3, 5, 7):
        codes = latents.symbols(points, width), whole[:, :width]
        own, prefix = (np.square(points - decoder.decode(code)).sum(axis=1) for code in codes)
        assert codes[0].shape == codes[1].shape
        assert (own <= prefix + 1e-4).all()
    first = np.square(points[:, None] - tensors["decoder.books.0"]).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(latents.symbols(points, 3) @ [4, 2, 1], first)
    np.testing.assert_array_equal(latents.symbols(points, 8), whole[:, :8])


@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_the_uncertainty_is_the_entropy_of_the_first_word(temperature):
    latents, tensors = make_latents(temperature=temperature)
    points, heat = make_points(), temperature * np.exp(tensors["decoder.log_temperature"])
    distances = np.square(points[:, None] - tensors["decoder.books.0"]).sum(axis=2)
    np.testing.assert_allclose(latents.uncertainty(points), softmax_entropy(distances, heat[0]), rtol=1e-4, atol=1e-5)


def test_the_uncertainty_of_signs_alone_is_that_of_all_of_them():
    latents, tensors = make_latents((1, 1, 1))
    points, heat = make_points(), np.exp(tensors["decoder.log_temperature"])
    products = latents.sign_products(points, latents.symbols(points, 3))
    along = np.stack([2 * products, -2 * products], axis=2)
    expected = sum(softmax_entropy(along[:, j], t) for j, t in enumerate(heat))
    np.testing.assert_allclose(latents.uncertainty(points), expected, rtol=1e-4, atol=1e-5)

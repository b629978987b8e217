"""Residual latents: the search, the signs, the probabilities along a code, and what a decoder makes of it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.encoders.config import EncoderConfig, residual_ladder, residual_stages
from stochcl.encoders.encoder import Encoder
from stochcl.encoders.residual import Distances, Named, beam_search, sign_bits
from stochcl.errors import UsageError

STAGES = (3, 2, 2, 1, 1)
WIDTH = 5


def make_encoder(stages=STAGES, seed=0, columns=6, **changes) -> Encoder:
    torch.manual_seed(seed)
    given = {"posterior": "residual", "latents": sum(stages), "stages": stages, "reduced": WIDTH} | changes
    encoder = Encoder(EncoderConfig(backbone=f"features:{columns}", **given)).eval()
    with torch.no_grad():
        encoder.decoder.log_temperature.uniform_(-1, 1)
    return encoder


def make_books(sizes, seed, width=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, width, generator=generator) for size in sizes]


def features(rows=40, columns=6, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=3), st.integers(0, 1000))
def test_a_search_of_full_width_finds_the_nearest_of_all_sums(sizes, seed):
    books = make_books(sizes, seed)
    points = torch.randn(7, 4, generator=torch.Generator().manual_seed(seed + 1))
    every = list(itertools.product(*(range(size) for size in sizes)))
    sums = torch.stack([sum(book[name] for book, name in zip(books, names, strict=True)) for names in every])
    distances = Distances.of(points, Named.of(books, points[:0]))
    found = beam_search(distances, width=len(every)) - torch.tensor(distances.ends[:-1])
    reached = torch.stack([sum(b[n] for b, n in zip(books, row, strict=True)) for row in found.tolist()])
    best = (points[:, None] - sums).square().sum(2).min(1).values
    torch.testing.assert_close((points - reached).square().sum(1), best)


def test_a_search_of_many_rows_is_that_of_each():
    books, points = make_books([8, 8, 4], 0), torch.randn(600, 4, generator=torch.Generator().manual_seed(1))
    found = beam_search(Distances.of(points, Named.of(books, points[:0])))
    for some in (slice(0, 1), slice(250, 260), slice(590, 600)):
        assert torch.equal(beam_search(Distances.of(points[some], Named.of(books, points[:0]))), found[some])
    assert len(beam_search(Distances.of(points[:0], Named.of(books, points[:0])))) == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_distances_from_products_of_words_are_those_of_what_is_left(seed, stage):
    books = make_books([4, 8, 2, 4, 8], seed)
    points = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    distances = Distances.of(points, Named.of(books, points[:0]))
    names = torch.stack([torch.randint(0, len(b), (6, 3)) for b in books[:stage]], dim=2)
    left = points[:, None] - sum(book[names[:, :, s]] for s, book in enumerate(books[:stage]))
    direct = (left[:, :, None] - books[stage]).square().sum(3) - points.square().sum(1)[:, None, None]
    direct -= (left.square().sum(2) - points.square().sum(1)[:, None])[:, :, None]
    torch.testing.assert_close(
        distances.after(names + torch.tensor(distances.ends[:stage]), stage), direct, rtol=1e-4, atol=1e-3
    )


def test_signs_of_axes_that_cross_are_chosen_one_after_the_other():
    signs = torch.tensor([[2.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0], [0.5, 0.5, 0.0]])
    left = features(50, 3)
    found = sign_bits(left @ signs.T, signs @ signs.T)
    for j, sign in enumerate(signs):
        np.testing.assert_array_equal(found[:, j], (left @ sign > 0).float())
        left = left - (2 * found[:, j : j + 1] - 1) * sign


def test_probabilities_of_all_codes_are_one_and_entropies_are_of_them():
    encoder = make_encoder((2, 1))
    posterior = encoder.posterior(features(6))
    every = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    log_q = torch.stack([posterior.log_prob(code.expand(6, -1)) for code in every], dim=1)
    torch.testing.assert_close(log_q.sum(2).exp().sum(1), torch.ones(6))
    first = log_q[:, ::4, :1].exp()[:, :, 0]
    torch.testing.assert_close(posterior.entropy()[:, 0], torch.special.entr(first).sum(1))


def test_words_are_as_likely_as_they_are_near():
    encoder = make_encoder((3, 2))
    posterior = encoder.posterior(features())
    u, books = posterior.parameters, list(encoder.decoder.books)
    temperature = encoder.decoder.log_temperature.exp()
    symbols = posterior.mode().long()
    first = 4 * symbols[:, 0] + 2 * symbols[:, 1] + symbols[:, 2]
    second = 2 * symbols[:, 3] + symbols[:, 4]
    log_first = torch.log_softmax(-torch.cdist(u, books[0]).square() / temperature[0], 1)
    log_second = torch.log_softmax(-torch.cdist(u - books[0][first], books[1]).square() / temperature[1], 1)
    expected = log_first.gather(1, first[:, None])[:, 0] + log_second.gather(1, second[:, None])[:, 0]
    torch.testing.assert_close(posterior.log_prob(symbols).sum(1), expected, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([STAGES, (8, 2), (1, 1, 1), (4,), residual_stages(70)]), st.integers(0, 100))
def test_entropy_rate_and_divergence_are_in_range(stages, seed):
    encoder = make_encoder(stages, seed)
    posterior = encoder.posterior(features(20, seed=seed))
    entropy, prior = posterior.entropy(), encoder.prior
    assert entropy.shape == posterior.mode().shape == (20, sum(stages))
    assert ((entropy >= 0) & (entropy <= math.log(2) + 1e-5)).all()
    torch.testing.assert_close(posterior.rate(prior), torch.ones_like(entropy))  # an even prior's bit
    assert (posterior.kl(prior) >= -1e-5).all()
    assert (posterior.tempered(3.0).entropy().sum(1) >= entropy.sum(1) - 1e-4).all()
    torch.testing.assert_close(posterior.tempered(3.0).mode(), posterior.mode())


@pytest.mark.parametrize("estimator", ["straight-through", "relaxed"])
def test_draws_bring_gradients_to_head_and_words(estimator):
    encoder = make_encoder()
    posterior = encoder.posterior(features())
    uniform = torch.rand(40, posterior.noise(encoder.config), generator=torch.Generator().manual_seed(3))
    draw = posterior.sample(uniform, estimator)
    torch.testing.assert_close(draw, posterior.sample(uniform, estimator))
    encoder.decode(draw).square().sum().backward()
    for tensor in (encoder.head.weight, encoder.head.mean, *encoder.decoder.books, encoder.decoder.signs):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
    if estimator == "straight-through":
        assert set(draw.unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(posterior.embed(posterior.symbols(draw), encoder.config), draw.detach())
        torch.testing.assert_close(posterior.decisions(draw).detach(), posterior.symbols(draw).float())


def test_draws_are_as_often_as_their_probability():
    encoder = make_encoder((2, 1))
    posterior = encoder.posterior(features(1).expand(20_000, -1))
    uniform = torch.rand(20_000, posterior.noise(encoder.config), generator=torch.Generator().manual_seed(0))
    symbols = posterior.symbols(posterior.sample(uniform).detach())
    for code in torch.tensor(list(itertools.product([0, 1], repeat=3))):
        often = (symbols == code).all(1).float().mean()
        expected = posterior.log_prob(code.expand(20_000, -1))[0].sum().exp().detach()
        assert float(often) == pytest.approx(float(expected), abs=0.015)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("latents", range(1, 10))
def test_every_prefix_decodes_from_tables_as_in_the_encoder(latents, images):
    encoder = make_encoder()
    if images:
        encoder.decoder.output = encoder.decoder.centre = None
    symbols = encoder.posterior(features()).mode()
    decoder = encoder.vector_decoder()
    expected = encoder.decode(encoder.embed(symbols), latents).detach().numpy()
    np.testing.assert_allclose(decoder.decode(symbols.numpy()[:, :latents]), expected, rtol=1e-4, atol=1e-4)


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
    encoder = make_encoder(seed=seed)
    posterior = encoder.posterior(features(30, seed=seed))
    books, points = list(encoder.decoder.books), posterior.parameters
    for latents in (3, 5, 7):
        own, prefix = posterior.mode_of(latents), posterior.mode()[:, :latents]
        assert own.shape == prefix.shape
        decoder = encoder.decoder
        errors = [
            (points - decoder.points(posterior.embed(_filled(code, posterior.mode()), encoder.config), latents))
            .square().sum(1) for code in (own, prefix)
        ]  # fmt: skip
        assert (errors[0] <= errors[1] + 1e-5).all()
    names = (posterior.mode_of(3).long() * torch.tensor([4, 2, 1])).sum(1)
    torch.testing.assert_close(names, torch.cdist(points, books[0]).argmin(1))
    torch.testing.assert_close(posterior.mode_of(9), posterior.mode())
    torch.testing.assert_close(posterior.mode_of(8), posterior.mode()[:, :8])


def _filled(code, whole):
    return torch.cat([code, whole[:, code.shape[1] :]], dim=1)


def test_the_uncertainty_is_the_entropy_of_the_first_word():
    encoder = make_encoder()
    posterior = encoder.posterior(features())
    torch.testing.assert_close(posterior.uncertainty(), posterior.entropy()[:, : STAGES[0]].sum(1))
    assert (posterior.tempered(50.0).uncertainty() > posterior.uncertainty()).all()
    signs = make_encoder(stages=(1, 1, 1)).posterior(features())
    torch.testing.assert_close(signs.uncertainty(), signs.entropy().sum(1))

import tracemalloc

import numpy as np
import pytest
import torch

from stochcl.encoders.config import EncoderConfig, default_ladder
from stochcl.errors import UsageError
from tests.encoders.making import make_config, make_encoder, restored


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(latents=24, decoder=(12, 10))


@pytest.fixture
def symbols(rng):
    return rng.integers(0, 2, (9, 24)).astype(np.uint8)


@pytest.mark.parametrize("latents", [1, 8, 17, 23, 24, None])
def test_a_prefix_decodes_as_the_code_with_the_prior_s_mean_beyond_it(encoder, symbols, latents):
    codes = torch.from_numpy(symbols).float()
    filled = codes.clone()
    if latents is not None:
        filled[:, latents:] = torch.sigmoid(encoder.prior)[latents:]
    torch.testing.assert_close(encoder.decode(codes, latents), encoder.decode(filled))


def test_latents_beyond_a_prefix_change_nothing(encoder, symbols):
    codes = torch.from_numpy(symbols).float()
    other = torch.cat([codes[:, :8], 1 - codes[:, 8:]], dim=1)
    assert torch.equal(encoder.decode(codes, 8), encoder.decode(other, 8))
    assert not torch.allclose(encoder.decode(codes), encoder.decode(other))


@pytest.mark.parametrize("latents", [1, 8, 24])
def test_the_decoder_s_arrays_decode_alike_in_numpy(encoder, symbols, latents):
    decoder = encoder.vector_decoder()
    assert decoder.codebooks is None
    assert (decoder.centre.shape, decoder.scale.shape) == ((24,), (24,))
    assert [w.shape for w, _ in decoder.layers] == [(12, 24), (10, 12), (32, 10)]
    vectors = decoder.decode(symbols[:, :latents])
    expected = encoder.decode(torch.from_numpy(symbols).float(), latents).detach().numpy()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=2e-3)  # the decoder's weights are rounded to float16
    assert expected.std() > 0.05


def test_without_hidden_layers_the_decoder_is_linear(symbols):
    encoder = make_encoder(latents=24, decoder=())
    vectors = encoder.vector_decoder().decode(symbols)
    expected = encoder.decode(torch.from_numpy(symbols).float()).detach().numpy()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=2e-3)


FAMILIES = {
    "categorical": {"posterior": "categorical", "alphabet": 5, "embedding": 3},
    "gaussian": {"posterior": "gaussian", "alphabet": 6},
    "vectors": {"backbone": "features:7", "head": (64, 32)},
    "categories of vectors": {"backbone": "features:7", "posterior": "categorical", "alphabet": 300, "embedding": 2},
    "gaussian of vectors": {"backbone": "features:7", "posterior": "gaussian", "alphabet": 9, "decoder": ()},
}


@pytest.fixture(scope="module", params=FAMILIES)
def other(request):
    """An encoder of another family, or of vectors, and symbols of its codes."""
    encoder = make_encoder(latents=10, **FAMILIES[request.param])
    symbols = np.random.default_rng(4).integers(0, encoder.config.alphabet, (9, 10))
    return encoder, symbols


def embedded(encoder, symbols):
    return encoder.embed(torch.from_numpy(symbols))


def test_what_is_missing_is_the_prior_s_mean_in_every_family(other):
    encoder, symbols = other
    draw = embedded(encoder, symbols)
    filled = torch.cat([draw[:, :4], encoder.factorised.mean()[4:].expand(9, *draw[:, 4:].shape[1:])], dim=1)
    torch.testing.assert_close(encoder.decode(draw, 4), encoder.decode(filled))
    assert not torch.allclose(encoder.decode(draw, 4), encoder.decode(draw))


@pytest.mark.parametrize("latents", [1, 4, 10])
def test_the_decoder_s_arrays_decode_alike_in_numpy_in_every_family(other, latents):
    encoder, symbols = other
    decoder = encoder.vector_decoder()
    assert (decoder.latents, decoder.dim) == (10, encoder.feature_dim)
    with torch.no_grad():
        expected = restored(encoder, encoder.decode(embedded(encoder, symbols), latents)).numpy()
    found = decoder.decode(symbols[:, :latents])
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-3)
    assert expected.std() > 0.05


def test_parameters_of_every_family_begin_where_training_can(other):
    encoder, _ = other
    torch.manual_seed(1)
    fresh = type(encoder)(encoder.config)
    posterior = fresh.posterior(torch.randn(400, fresh.feature_dim))
    decided = 1 - posterior.entropy() / np.log(encoder.config.alphabet)
    assert 0.3 < decided.mean().item() < 0.95
    used = [len(column.unique()) for column in posterior.mode().T]
    assert min(used) > min(encoder.config.alphabet, 40) // 2


def test_vectors_are_standardised_by_one_scale_and_brought_back(rng):
    encoder = make_encoder(backbone="features:7")
    vectors = (rng.normal(3, [1, 2, 3, 4, 5, 6, 0], (9000, 7)) + 5).astype(np.float32)
    encoder.norm.fit(vectors)
    given = torch.from_numpy(vectors)
    features = encoder.features(encoder.normalise(given))
    torch.testing.assert_close(features.mean(0), torch.zeros(7), atol=1e-4, rtol=0)
    assert features.square().mean().item() == pytest.approx(1, rel=1e-4)
    ratio = features.std(0)[:6] / given.std(0)[:6]
    torch.testing.assert_close(ratio, ratio[:1].expand(6))  # distances stay in proportion
    torch.testing.assert_close(restored(encoder, features), given, rtol=1e-4, atol=1e-4)
    assert {"norm.centre", "norm.scale"} <= set(encoder.state_dict())


def test_statistics_of_vectors_need_no_second_matrix():
    vectors = np.random.default_rng(0).normal(2, 3, (60_000, 40)).astype(np.float32)
    tracemalloc.start()
    encoder = make_encoder(backbone="features:40")
    encoder.norm.fit(vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < vectors.nbytes
    assert encoder.norm.scale.item() == pytest.approx(float((vectors - vectors.mean(0)).std()), rel=1e-4)


def test_vectors_that_are_all_alike_keep_their_scale():
    encoder = make_encoder(backbone="features:3")
    encoder.norm.fit(np.full((5, 3), 7, np.float32))
    assert encoder.norm.scale.item() == 1
    assert encoder.norm.centre.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("scale", "shift", "message"),
    [
        (1e-6, 0, "a deviation of 1.*e-06, .* multiply the matrix by"),
        (1e6, 0, "multiply the matrix by"),
        (1, 900, "a column of the vectors has a mean of 9.*; subtract the columns' means first"),
    ],
)
def test_vectors_that_tables_could_not_give_back_are_refused(rng, scale, shift, message):
    with pytest.raises(UsageError, match=message):
        make_encoder(backbone="features:3").norm.fit(rng.normal([0, shift, 0], scale, (50, 3)))


def test_pixels_of_the_mean_colour_are_normalised_to_zero(encoder):
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255
    torch.testing.assert_close(encoder.normalise(mean + std), torch.ones(1, 3, 1, 1))


def test_the_first_codes_of_a_network_are_neither_coin_tosses_nor_constant():
    torch.manual_seed(0)
    logits = make_encoder(latents=64).head(torch.randn(500, 32))
    assert logits.std().item() == pytest.approx(3, rel=0.15)


def test_the_colours_are_no_part_of_the_weights(encoder):
    assert not {"mean", "std"} & set(encoder.state_dict())
    assert encoder.feature_dim == 32


@pytest.mark.parametrize(
    ("latents", "ladder"), [(1, (1,)), (8, (8,)), (9, (8, 9)), (64, (8, 16, 32, 64)), (100, (8, 16, 32, 64, 100))]
)
def test_ladders_are_powers_of_two_and_the_full_width(latents, ladder):
    assert default_ladder(latents) == ladder == EncoderConfig(latents=latents).ladder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": 0}, "latents must be between 1 and 4,096"),
        ({"latents": 4097}, "latents must be"),
        ({"ladder": (8, 4, 16)}, "must ascend to the full width, 16"),
        ({"ladder": (8, 8, 16)}, "must ascend"),
        ({"ladder": (0, 16)}, "must ascend"),
        ({"ladder": (4, 8)}, "must ascend to the full width, 16"),
        ({"posterior": "cauchy"}, "posterior must be bernoulli, categorical, gaussian or residual"),
        ({"alphabet": 4}, "a bernoulli latent has 2 values, not 4"),
        ({"posterior": "gaussian"}, r"a gaussian latent has 3 to 4096 values \(alphabet\), not 2"),
        ({"posterior": "categorical", "alphabet": 4097}, "a categorical latent has 2 to 4096 values"),
        ({"posterior": "categorical", "alphabet": 1}, "alphabet must be"),
        ({"posterior": "categorical", "alphabet": 2.5}, "alphabet must be a whole number"),
        ({"posterior": "categorical", "alphabet": 256, "latents": 513}, "1 to 512 latents of 256 values, not 513"),
        ({"posterior": "gaussian", "alphabet": 5, "latents": 1366}, "1 to 1365 latents of 5 values, not 1366"),
        ({"embedding": 4}, "only categorical symbols have embeddings, and these latents are bernoulli"),
        ({"posterior": "categorical", "embedding": 5000}, "at most 65,536"),
        ({"posterior": "categorical", "embedding": -1}, "embedding must be"),
        ({"posterior": "categorical", "alphabet": 4096, "embedding": 600}, "16 latents x 4096 symbols x 600 numbers"),
        ({"head": (8, 0)}, "widths of .*0"),
        ({"backbone": "features:0"}, "not features:W"),
        ({"backbone": "vgg"}, "no backbone 'vgg'; there are resnet10"),
        ({"stem": "large"}, "stem must be imagenet or small"),
        ({"fit": "squeeze"}, "fit must be crop, pad or stretch"),
        ({"size": 0}, "size must be between 1 and 4,096"),
        ({"size": 5000}, "size must be"),
        ({"size": 16.5}, "size must be a whole number"),
        ({"width": 0}, "width must be"),
        ({"decoder": (8, -1)}, "widths of .*-1"),
        ({"mean": (0.5, 0.5)}, "colours cannot have a mean"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean must be finite"),
        ({"std": (0.2, 0.2, 0.0)}, "colours cannot have"),
    ],
)
def test_configurations_that_no_encoder_has_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        make_config(**changes)


@pytest.mark.parametrize(("alphabet", "embedding"), [(2, 2), (5, 5), (8, 8), (300, 8)])
def test_embeddings_are_as_wide_as_the_alphabet_needs(alphabet, embedding):
    config = EncoderConfig(posterior="categorical", alphabet=alphabet, latents=8)
    assert (config.embedding, config.decoder_inputs) == (embedding, 8 * embedding)
    assert EncoderConfig(latents=8).decoder_inputs == 8


def test_columns_are_those_of_vectors():
    assert (EncoderConfig(backbone="features:12").columns, EncoderConfig().columns) == (12, None)

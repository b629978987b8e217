import numpy as np
import pytest
import torch

from stochcl.compress import VectorDecoder
from stochcl.encoders.model import EncoderConfig, default_ladder
from stochcl.errors import UsageError
from tests.encoders.making import make_config, make_encoder


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
    centre, scale, layers, codebooks = encoder.decoder_arrays()
    assert codebooks is None
    assert (centre.shape, scale.shape) == ((24,), (24,))
    assert [w.shape for w, _ in layers] == [(12, 24), (10, 12), (32, 10)]
    decoder = VectorDecoder.from_arrays(centre, scale, layers)
    vectors = decoder.decode(symbols[:, :latents])
    expected = encoder.decode(torch.from_numpy(symbols).float(), latents).detach().numpy()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=2e-3)  # the decoder's weights are rounded to float16
    assert expected.std() > 0.05


def test_without_hidden_layers_the_decoder_is_linear(symbols):
    encoder = make_encoder(latents=24, decoder=())
    vectors = VectorDecoder.from_arrays(*encoder.decoder_arrays()).decode(symbols)
    expected = encoder.decode(torch.from_numpy(symbols).float()).detach().numpy()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=2e-3)


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
        ({"latents": 0}, "1 to 4096 latents, not 0"),
        ({"latents": 4097}, "1 to 4096 latents, not 4097"),
        ({"ladder": (8, 4, 16)}, "must ascend to the full width, 16"),
        ({"ladder": (8, 8, 16)}, "must ascend"),
        ({"ladder": (0, 16)}, "must ascend"),
        ({"ladder": (4, 8)}, "must ascend to the full width, 16"),
        ({"posterior": "cauchy"}, "no posterior 'cauchy'; there are bernoulli"),
        ({"backbone": "vgg"}, "no backbone 'vgg'; there are resnet10"),
        ({"stem": "large"}, "no stem 'large'; there are imagenet, small"),
        ({"fit": "squeeze"}, "no fit 'squeeze'; there are crop, pad, stretch"),
        ({"size": 0}, "1 to 4096 pixels a side, not 0"),
        ({"size": 5000}, "1 to 4096 pixels a side, not 5000"),
        ({"size": 16.5}, "1 to 4096 pixels a side, not 16.5"),
        ({"width": 0}, "widths of 0"),
        ({"decoder": (8, -1)}, r"widths of 4 and \(8, -1\)"),
        ({"mean": (0.5, 0.5)}, "colours cannot have a mean"),
        ({"mean": (0.5, 0.5, float("nan"))}, "colours cannot have a mean"),
        ({"std": (0.2, 0.2, 0.0)}, "colours cannot have"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        make_config(**changes)

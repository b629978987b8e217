import pytest

from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import code_lengths, latent_lengths
from tests.compress.making import make_chain, make_codes, make_network, make_tables


@pytest.mark.parametrize("alphabet", [2, 5, 16, 300])
@pytest.mark.parametrize("networked", [False, True])
@pytest.mark.parametrize("latents", [6, 4])
def test_rows_add_up_to_what_the_coder_counts(alphabet, networked, latents):
    network = make_network(6, alphabet, 5) if networked else None
    tables = make_tables(6, alphabet, decoder=False, network=network)
    codes = make_chain(700, 6, alphabet).prefix(latents)
    model = tables.candidates(latents)[-1].model
    found = code_lengths(codes, model)
    assert found.shape == (700,)
    assert isinstance(model, IndependentModel) != networked
    assert found.sum(dtype=float) == pytest.approx(model.ideal_bits(codes), rel=1e-5)
    assert found[3] == pytest.approx(model.ideal_bits(codes[3]), rel=1e-5)
    by_latent = latent_lengths(codes, model)
    assert by_latent.shape == (latents,)
    assert by_latent.sum() == pytest.approx(found.mean(dtype=float), rel=1e-5)


def test_selected_latents_take_their_own_rows_of_the_table():
    tables = make_tables(6, network=make_network(6))
    codes = make_codes(50, 3)
    model = tables.candidates(3, (0, 2, 5))[-1].model
    assert model.ones.tolist() == tables.entropy.ones[[0, 2, 5]].tolist()
    assert code_lengths(codes, model).sum(dtype=float) == pytest.approx(model.ideal_bits(codes))


def test_no_rows_have_no_lengths():
    assert code_lengths(make_codes(0, 6), make_tables(6).entropy).shape == (0,)
    assert latent_lengths(make_codes(0, 6), make_tables(6).entropy).tolist() == [0] * 6

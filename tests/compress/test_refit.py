"""Which fitted models are worth their own bytes."""

import numpy as np
import pytest

from stochcl.codes import Codes
from stochcl.compress.transcode import choose, fit_models, price
from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import Candidate

COIN = Candidate(IndependentModel(np.full((16, 1), 2048, np.uint16)))


def chain(rows: int, flip: float) -> Codes:
    """Rows in which every bit repeats the one before it, but for so many that are turned."""
    turns = np.random.default_rng(1).random((rows, 16)) < flip
    turns[:, 0] = np.arange(rows) % 2
    return Codes.from_symbols(np.cumsum(turns, axis=1) % 2)


def test_of_two_models_only_the_one_that_pays_is_kept():
    codes = chain(4000, 0.05)  # every bit is a coin; all there is to know is the bit before it
    chosen = choose([codes], [COIN], fit_models(codes, len(codes)))
    assert [type(model) for model in chosen] == [AutoregressiveModel]


@pytest.mark.parametrize("flip", [0.05, 0.5])
def test_none_is_kept_that_costs_more_than_it_saves(flip):
    few, many = chain(8, flip), chain(4000, flip)
    models = fit_models(many, len(many))
    assert len(models) == 2
    assert choose([few], [COIN], models) == []
    if flip == 0.5:  # coins, whatever came before
        assert choose([many], [COIN], models) == []


def test_what_is_kept_saves_more_than_its_price():
    codes = chain(4000, 0.05)
    (model,) = choose([codes], [COIN], fit_models(codes, len(codes)))
    assert model.ideal_bits(codes) + price(model) < COIN.model.ideal_bits(codes)


def test_a_model_is_of_no_use_where_the_codes_take_less_as_they_are():
    codes = chain(4000, 0.05)
    models = fit_models(codes, len(codes))
    assert choose([codes], [COIN], models, before=COIN.model.ideal_bits(codes))
    assert choose([codes], [COIN], models, before=1000.0) == []

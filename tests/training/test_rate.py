import pytest
import torch

from stochcl.training.latents import RateController, rate_warnings


def test_target_is_meant_for_hard_codes():
    controller = RateController(50, beta=0.01)
    controller.set_hard_ratio(hard=40, sampled=80)
    controller.update(100)  # hard codes cost just what was asked for
    assert controller.beta == 0.01
    controller.update(110)
    assert controller.beta > 0.01


@pytest.mark.parametrize(("hard", "sampled", "ratio"), [(1e9, 1, 2.0), (1e-9, 1, 0.1), (5, 0, 1.0)])
def test_a_measurement_cannot_run_away(hard, sampled, ratio):
    controller = RateController(50)
    controller.set_hard_ratio(hard, sampled)
    assert controller.hard_ratio == ratio


class Plant:
    """An encoder as a controller sees it: its rate follows beta, slowly and with noise."""

    def __init__(self, rate=1000.0):
        self.rate = rate
        self.noise = torch.Generator().manual_seed(0)

    def step(self, beta):
        settled = 1000 / (1 + (beta / 1e-3) ** 0.8)
        self.rate += 0.05 * (settled - self.rate)
        return self.rate * (1 + 0.02 * torch.randn((), generator=self.noise).item())


@pytest.mark.parametrize("target", [32, 128, 600])
def test_the_controller_holds_a_target(target):
    controller, plant, rates = RateController(target), Plant(), []
    for _ in range(1500):
        controller.update(plant.step(controller.beta))
        rates.append(plant.rate)
    assert sum(rates[-300:]) / 300 == pytest.approx(target, rel=0.05)
    assert all(rate == pytest.approx(target, rel=0.25) for rate in rates[-300:])


def test_the_controller_does_not_wind_up():
    controller = RateController(100)
    for _ in range(100_000):  # a rate that nothing brings down
        controller.update(5000)
    assert controller.beta == controller.HIGHEST
    for _ in range(500):
        controller.update(10)
    assert controller.beta < controller.HIGHEST / 1000


def test_the_controller_stays_within_its_bounds():
    controller = RateController(100, beta=0.0)
    for _ in range(1000):
        controller.update(0)
        assert controller.beta == controller.LOWEST
    controller.update(1e30)
    assert controller.beta == pytest.approx(controller.LOWEST * (1 + controller.GAIN))


def test_without_a_target_beta_is_constant():
    controller = RateController(None, 0.007)
    for rate in (0.0, 1e6, 3.0):
        controller.update(rate)
    assert controller.beta == 0.007


@pytest.mark.parametrize("rate", [60, 68, 19.8])
def test_a_missed_rate_is_said(rate):
    (sentence,) = rate_warnings(rate, 64, "row")
    assert f"{rate:,.1f} bits per row, not 64 as asked" in sentence


def test_a_rate_that_is_met_or_was_not_asked_for_is_no_news():
    assert rate_warnings(61, 64) == rate_warnings(67, 64) == rate_warnings(19.8, None) == ()

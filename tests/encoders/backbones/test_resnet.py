import pytest
import torch
from torch.nn import functional

from stochcl.encoders.backbones import BACKBONES, ResNet, moments
from stochcl.errors import UsageError


def norm(name, width):
    statistics = {f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")}
    return statistics | {f"{name}.num_batches_tracked": ()}


def basic(name, inputs, width, stride):
    layout = {f"{name}.conv1.weight": (width, inputs, 3, 3)} | norm(f"{name}.bn1", width)
    layout |= {f"{name}.conv2.weight": (width, width, 3, 3)} | norm(f"{name}.bn2", width)
    if stride > 1:
        layout |= {f"{name}.downsample.0.weight": (width, inputs, 1, 1)} | norm(f"{name}.downsample.1", width)
    return layout


def bottleneck(name, inputs, width, first):
    layout = {f"{name}.conv1.weight": (width, inputs, 1, 1)} | norm(f"{name}.bn1", width)
    layout |= {f"{name}.conv2.weight": (width, width, 3, 3)} | norm(f"{name}.bn2", width)
    layout |= {f"{name}.conv3.weight": (4 * width, width, 1, 1)} | norm(f"{name}.bn3", 4 * width)
    if first:
        name = f"{name}.downsample"
        layout |= {f"{name}.0.weight": (4 * width, inputs, 1, 1)} | norm(f"{name}.1", 4 * width)
    return layout


STEM = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
RESNET18 = (
    STEM
    | basic("layer1.0", 64, 64, 1)
    | basic("layer1.1", 64, 64, 1)
    | basic("layer2.0", 64, 128, 2)
    | basic("layer2.1", 128, 128, 1)
    | basic("layer3.0", 128, 256, 2)
    | basic("layer3.1", 256, 256, 1)
    | basic("layer4.0", 256, 512, 2)
    | basic("layer4.1", 512, 512, 1)
)
RESNET34 = (
    RESNET18
    | basic("layer1.2", 64, 64, 1)
    | basic("layer2.2", 128, 128, 1)
    | basic("layer2.3", 128, 128, 1)
    | basic("layer3.2", 256, 256, 1)
    | basic("layer3.3", 256, 256, 1)
    | basic("layer3.4", 256, 256, 1)
    | basic("layer3.5", 256, 256, 1)
    | basic("layer4.2", 512, 512, 1)
)
RESNET50 = (
    STEM
    | bottleneck("layer1.0", 64, 64, first=True)
    | bottleneck("layer1.1", 256, 64, first=False)
    | bottleneck("layer1.2", 256, 64, first=False)
    | bottleneck("layer2.0", 256, 128, first=True)
    | bottleneck("layer2.1", 512, 128, first=False)
    | bottleneck("layer2.2", 512, 128, first=False)
    | bottleneck("layer2.3", 512, 128, first=False)
    | bottleneck("layer3.0", 512, 256, first=True)
    | bottleneck("layer3.1", 1024, 256, first=False)
    | bottleneck("layer3.2", 1024, 256, first=False)
    | bottleneck("layer3.3", 1024, 256, first=False)
    | bottleneck("layer3.4", 1024, 256, first=False)
    | bottleneck("layer3.5", 1024, 256, first=False)
    | bottleneck("layer4.0", 1024, 512, first=True)
    | bottleneck("layer4.1", 2048, 512, first=False)
    | bottleneck("layer4.2", 2048, 512, first=False)
)


# Numbers of parameters as torchvision publishes them, less those of fc (513,000 and 2,049,000): they hold the
# layouts above to something that is not written here.
@pytest.mark.parametrize(
    ("name", "layout", "parameters", "features"),
    [
        ("resnet18", RESNET18, 11_689_512 - 513_000, 512),
        ("resnet34", RESNET34, 21_797_672 - 513_000, 512),
        ("resnet50", RESNET50, 25_557_032 - 2_049_000, 2048),
    ],
)
def test_names_and_shapes_are_torchvision_s(name, layout, parameters, features):
    with torch.device("meta"):
        network = ResNet(name)
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == layout
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.features == features


def test_the_bottleneck_strides_in_its_3_x_3_convolution():
    with torch.device("meta"):
        block = ResNet("resnet50").get_submodule("layer2.0")
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize(("stem", "side", "kernel"), [("imagenet", 8, 7), ("small", 32, 3)])
def test_stems_reduce_as_they_say(stem, side, kernel):
    network = ResNet("resnet10", width=4, stem=stem)
    assert network.conv1.kernel_size == (kernel, kernel)
    x = network.maxpool(network.bn1(network.conv1(torch.zeros(1, 3, 32, 32))))
    assert x.shape == (1, 4, side, side)


@pytest.mark.parametrize(("name", "widths"), [("resnet10", 8), ("resnet18", 8), ("resnet34", 8), ("resnet50", 32)])
@pytest.mark.parametrize("width", [4, 6])
def test_features_are_as_wide_as_they_say(name, widths, width):
    network = ResNet(name, width=width)
    assert network.features == widths * width
    assert network(torch.zeros(2, 3, 32, 48)).shape == (2, widths * width)


@pytest.mark.parametrize(("name", "means"), [("resnet10", [4, 8, 16, 32]), ("resnet50", [16, 32, 64, 128])])
def test_all_stages_pooled_are_their_means_side_by_side_and_the_last_is_what_one_alone_gives(name, means):
    torch.manual_seed(0)
    network, last = ResNet(name, width=4, pooling="stages").eval(), ResNet(name, width=4).eval()
    last.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 32, 48)
    found = network(images)
    assert network.features == sum(means)
    torch.testing.assert_close(found[:, -means[-1] :], last(images))
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    for stage, part in enumerate(found.split(means, dim=1), 1):
        x = network.get_submodule(f"layer{stage}")(x)
        torch.testing.assert_close(part, x.mean((2, 3)))


def test_moments_are_those_of_the_responses():
    rng = torch.Generator().manual_seed(0)
    responses = torch.rand(2, 3, 5, 7, generator=rng)
    found = moments(responses).view(2, 6, 3)
    p = (responses / responses.sum((2, 3), keepdim=True)).double()
    x, y = ((torch.arange(n).double() + 0.5) * 2 / n - 1 for n in (7, 5))
    torch.testing.assert_close(found[:, 0], responses.mean((2, 3)))
    for b in range(2):
        for c in range(3):
            mx, my = (p[b, c].sum(0) * x).sum(), (p[b, c].sum(1) * y).sum()
            xx, yy = (p[b, c].sum(0) * (x - mx) ** 2).sum(), (p[b, c].sum(1) * (y - my) ** 2).sum()
            xy = (p[b, c] * (y - my)[:, None] * (x - mx)).sum()
            expected = torch.stack([mx, my, xx, yy, xy]).float()
            torch.testing.assert_close(found[b, 1:, c], expected, atol=1e-4, rtol=1e-3)
    assert moments(torch.zeros(1, 2, 4, 4)).abs().max() == 0


def test_moments_move_with_what_is_seen_and_stay_finite_in_half_precision():
    torch.manual_seed(0)
    network, last = ResNet("resnet10", width=4, stem="small", pooling="moments").eval(), ResNet("resnet10", width=4)
    assert network.features == 6 * (4 + 8 + 16) + last.features
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, 4:12, 4:12] = 1
    images[1, :, 4:12, 18:26] = 1
    with torch.autocast("cpu", torch.bfloat16):
        found = network(images)
    assert found.isfinite().all()
    across, down = found[:, 4:8], found[:, 8:12]
    assert (across[1] - across[0]).max() > 0.1
    torch.testing.assert_close(down[1], down[0], atol=0.02, rtol=0)
    network(images).sum().backward()
    assert network.conv1.weight.grad.isfinite().all()


def test_a_block_adds_its_shortcut():
    block = ResNet("resnet18", width=4).get_submodule("layer1.1").eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 4, 8, 8)
    torch.testing.assert_close(block(x.clone()), x)


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(UsageError, match=f"no backbone 'resnet99'; there are {', '.join(BACKBONES)}"):
        ResNet("resnet99")
    with pytest.raises(UsageError, match="no stem 'large'; there are imagenet, small"):
        ResNet("resnet18", stem="large")
    with pytest.raises(UsageError, match="no pooling 'max'; there are mean, stages"):
        ResNet("resnet18", pooling="max")


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_outputs_are_torchvision_s(name):
    models = pytest.importorskip(
        "torchvision.models", reason="torchvision is not installed: outputs are not compared"
    )
    torch.manual_seed(0)
    theirs, ours = getattr(models, name)().eval(), ResNet(name).eval()
    theirs.fc = torch.nn.Identity()
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.normal_(0, 0.02)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(ours(images), theirs(images))


def stages(state):
    """Blocks of each stage by the names of a state dict."""
    return [sorted({int(k.split(".")[1]) for k in state if k.startswith(f"layer{i}.")}) for i in range(1, 5)]


def by_the_paper(state, x):
    """He et al. (arXiv 1512.03385), table 1, from a state dict alone, as torchvision's version 1.5 strides."""

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    x = functional.max_pool2d(norm(conv(x, "conv1", 2), "bn1").relu(), 3, 2, 1)
    for stage, blocks in enumerate(stages(state), 1):
        for block in blocks:
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and not block else 1
            last = 3 if f"{at}.conv3.weight" in state else 2
            inner = x
            for i in range(1, last + 1):
                inner = norm(conv(inner, f"{at}.conv{i}", stride if i == last - 1 else 1), f"{at}.bn{i}")
                inner = inner.relu() if i < last else inner
            if f"{at}.downsample.0.weight" in state:
                x = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = (x + inner).relu()
    return x.mean(dim=(2, 3))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_outputs_are_those_of_the_paper_s_network(name):
    torch.manual_seed(0)
    network = ResNet(name, width=4).double().eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(network(images), by_the_paper(network.state_dict(), images))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_narrow_shortcut_is_the_strided_convolution_that_it_stands_for(layout):
    narrow = ResNet("resnet10", width=4).get_submodule("layer2.0.downsample.0")
    plain = torch.nn.Conv2d(4, 8, 1, 2, bias=False)
    plain.load_state_dict(narrow.state_dict())
    images = torch.randn(2, 4, 5, 6).to(memory_format=layout)
    torch.testing.assert_close(narrow(images), plain(images))
    assert type(ResNet("resnet10", width=8).get_submodule("layer2.0.downsample.0")) is torch.nn.Conv2d

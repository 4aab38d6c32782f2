import pytest
import timm
import torch
from torch import nn

from mixsize.recipes.models import networks

RESNETS = ["cifar_resnet20", "cifar_resnet44"]
SMALL = ["cifar_resnet20", "wrn16_2"]
ALL = [*RESNETS, "wrn16_2", "wrn28_10"]
LAST_CHANNELS = {"cifar_resnet20": 64, "wrn16_2": 128}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_module_registers_four_networks_with_timm():
    assert timm.list_models(module="networks") == sorted(ALL)
    assert [name for name in networks.__all__ if timm.is_model(name)] == ALL


# ResNet-(6n+2): stem 3*16*9 + 2*16 = 464; a stage of c channels: its n blocks have two 3 x 3 convolutions and two
# batch norms each, the first convolution from the previous width.
#   n = 3:  16 ch: 6 * 2304 + 6 * 32 = 14,016     32 ch: 4608 + 5 * 9216 + 6 * 64 = 51,072
#           64 ch: 18432 + 5 * 36864 + 6 * 128 = 203,520     linear 650     sum 269,722 (He et al., table 6: 0.27 M)
#   n = 7:  16 ch: 14 * 2304 + 14 * 32 = 32,704   32 ch: 4608 + 13 * 9216 + 14 * 64 = 125,312
#           64 ch: 18432 + 13 * 36864 + 14 * 128 = 499,456   linear 650     sum 658,586 (0.66 M)
# With 1 x 1 convolutions for shortcuts (option B) ResNet-20 would have 512 + 64 + 2048 + 128 = 2,752 more: 272,474.
# WRN-28-10, widths 160, 320, 640, n = 4, pre-activation: stem 432
#   160 ch: 23040 + 7 * 230400 + 1 x 1: 2560, batch norm 32 + 7 * 320                = 1,640,672
#   320 ch: 460800 + 7 * 921600 + 1 x 1: 51200, batch norm 320 + 7 * 640             = 6,968,000
#   640 ch: 1843200 + 7 * 3686400 + 1 x 1: 204800, batch norm 640 + 7 * 1280         = 27,862,400
#   last batch norm 1280, linear 6410                                     sum 36,479,194 (the paper's 36.5 M)
# WRN-16-2, widths 32, 64, 128, n = 2: stem 432
#   32 ch: 4608 + 3 * 9216 + 512 + 32 + 3 * 64 = 32,992      64 ch: 18432 + 3 * 36864 + 2048 + 64 + 3 * 128 = 131,520
#   128 ch: 73728 + 3 * 147456 + 8192 + 128 + 3 * 256 = 525,184    last batch norm 256, linear 1290     sum 691,674
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar_resnet20", 269_722),
        ("cifar_resnet44", 658_586),
        ("wrn28_10", 36_479_194),
        ("wrn16_2", 691_674),
    ],
)
def test_parameter_count_is_the_hand_count(name, expected):
    with torch.device("meta"):
        assert parameters(timm.create_model(name)) == expected


# He et al. count 6n + 1 convolutions and the last layer; Zagoruyko and Komodakis 6n + 1 and three shortcuts.
@pytest.mark.parametrize(
    ("name", "kinds", "depth"),
    [
        ("cifar_resnet20", nn.Conv2d | nn.Linear, 20),
        ("cifar_resnet44", nn.Conv2d | nn.Linear, 44),
        ("wrn16_2", nn.Conv2d, 16),
        ("wrn28_10", nn.Conv2d, 28),
    ],
)
def test_a_network_has_the_depth_of_its_name(name, kinds, depth):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(isinstance(m, kinds) for m in model.modules()) == depth


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [16, 24, 32, 40])
def test_any_multiple_of_four_is_a_fit_size(name, size):
    model = timm.create_model(name, num_classes=7).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert model(images).shape == (2, 7)
        assert model.forward_features(images).shape == (2, LAST_CHANNELS[name], size // 4, size // 4)


@pytest.mark.parametrize("name", SMALL)
def test_other_sizes_round_the_feature_maps_up(name):
    model = timm.create_model(name).eval()
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 30, 17)).shape == (1, LAST_CHANNELS[name], 8, 5)


@pytest.mark.parametrize("name", ALL)
def test_feature_info_states_a_stride_of_four(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert [stage["reduction"] for stage in model.feature_info] == [1, 1, 2, 4]
    assert model.feature_info[-1]["num_chs"] == model.num_features


@pytest.mark.parametrize("name", SMALL)
def test_feature_info_matches_the_maps_that_features_only_returns(name):
    model = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [32 // m.shape[-1] for m in maps] == model.feature_info.reduction() == [1, 1, 2, 4]
    last = timm.create_model(name, features_only=True, out_indices=(3,))(torch.randn(1, 3, 32, 32))
    assert [m.shape[-1] for m in last] == [8]


@pytest.mark.parametrize("name", RESNETS)
def test_last_gamma_of_each_block_starts_at_zero(name):
    blocks = [m for m in timm.create_model(name).modules() if isinstance(m, networks.ResidualBlock)]
    assert len(blocks) == (int(name[-2:]) - 2) // 2
    assert all(block.bn2.weight.eq(0).all() and block.bn1.weight.eq(1).all() for block in blocks)
    image = torch.randn(2, 16, 8, 8).relu()
    assert torch.equal(blocks[0](image), image)  # a block begins as its shortcut


def test_zero_initialisation_can_be_turned_off():
    model = timm.create_model("cifar_resnet20", zero_init_last=False)
    assert all(m.weight.eq(1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_wide_resnet_refuses_zero_initialisation_which_would_kill_its_blocks():
    with pytest.raises(TypeError, match="zero_init_last"):
        timm.create_model("wrn16_2", zero_init_last=True)


def test_every_parameter_of_a_wide_resnet_receives_a_gradient():
    model = timm.create_model("wrn16_2")
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_shortcut_a_has_no_parameters_and_is_subsampling_with_zeros_behind():
    shortcuts = [m for m in timm.create_model("cifar_resnet44").modules() if isinstance(m, networks.SubsamplePad)]
    assert len(shortcuts) == 2
    assert all(parameters(m) == 0 for m in shortcuts)
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    out = networks.SubsamplePad(extra_chs=2, stride=2)(image)
    assert out.tolist() == [[[[0.0, 2.0], [6.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]]


def test_the_1x1_shortcut_of_a_wide_resnet_sees_the_activated_input():
    block = networks.PreActivationBlock(1, 1, stride=2, drop_rate=0.0).eval()
    nn.init.zeros_(block.conv2.weight)
    nn.init.ones_(block.shortcut.weight)
    image = torch.tensor([[[[-4.0, 9.0], [9.0, 9.0]]], [[[4.0, 9.0], [9.0, 9.0]]]])
    assert block(image).flatten().tolist() == pytest.approx([0.0, 4.0], rel=1e-4)


def test_convolutions_start_from_kaimings_fan_out_normal():
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet44")
    weight = model.layer3[1].conv1.weight  # 64 outputs of 3 x 3: standard deviation sqrt(2 / 576) = 0.0589
    assert weight.std().item() == pytest.approx(0.0589, rel=0.02)
    stem = model.conv1.weight  # 16 outputs of 3 x 3: sqrt(2 / 144) = 0.1179; fan in would give 0.272
    assert stem.std().item() == pytest.approx(0.1179, rel=0.15)


@pytest.mark.parametrize("name", SMALL)
def test_classifier_can_be_replaced_removed_and_left_unpooled(name):
    model = timm.create_model(name, num_classes=10).eval()
    images = torch.randn(2, 3, 16, 16)
    chs = LAST_CHANNELS[name]
    with torch.no_grad():
        model.reset_classifier(5)
        assert model.num_classes == 5
        assert model(images).shape == (2, 5)
        assert model.get_classifier() is model.fc
        assert model.get_classifier(name_only=True) == "fc"
        model.reset_classifier(5, "catavgmax")
        assert model(images).shape == (2, 5)
        assert model.head_hidden_size == 2 * chs
        model.reset_classifier(0, "avg")
        assert model(images).shape == (2, chs)
        model.reset_classifier(0, "")
        assert model(images).shape == (2, chs, 4, 4)
        assert not model.global_pool.training


def test_head_dropout_acts_in_training_only():
    model = timm.create_model("cifar_resnet20", drop_rate=0.5)
    maps = torch.ones(1, 64, 4, 4)
    torch.manual_seed(0)
    dropped = model.forward_head(maps, pre_logits=True)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    assert model.eval().forward_head(maps, pre_logits=True).eq(1).all()


def test_block_dropout_of_a_wide_resnet_sits_in_every_block_and_acts_in_training_only():
    model = timm.create_model("wrn16_2", block_drop_rate=0.3)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3] * 6
    block, image = model.layer1[1], torch.randn(2, 32, 4, 4)
    block.bn1.eval()
    block.bn2.eval()
    assert not torch.equal(block(image), block(image))
    block.eval()
    assert torch.equal(block(image), block(image))


@pytest.mark.parametrize("name", SMALL)
def test_pretrained_weights_give_timms_own_error(name):
    with torch.device("meta"), pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        timm.create_model(name, pretrained=True)


def test_image_channels_and_classes_follow_the_arguments():
    model = timm.create_model("cifar_resnet20", in_chans=1, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 8, 8)).shape == (1, 3)
    assert timm.create_model("cifar_resnet20").num_classes == 10

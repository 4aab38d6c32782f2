"""Families of timm networks train at several image sizes, one small member of each.

Eight families of different make run always. All hundred take minutes and run under the marker `soak`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixsize.algorithms.batchnorm.calibration import calibrate_batch_norm
from mixsize.recipes.models.network import check_sizes, network_stride

CLASSES = 5
DYNAMIC = {"dynamic_img_size": True}
SHALLOW = {**DYNAMIC, "depths": (1, 1, 2, 1)}


@dataclass(frozen=True)
class Family:
    """A family and the member that stands for it.

    `module` is the file `timm.models.<module>`; `least_px` is the least multiple of the stride that the network takes;
    `kwargs` make it small, or let it take several sizes.
    """

    family: str
    name: str
    module: str
    least_px: int = 32
    stride_px: int = 32
    batch_norm: bool = True
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int]:
        """Two sizes to train at; maps of one position have no variance to normalise by."""
        first = -(-max(64, self.least_px) // self.stride_px) * self.stride_px
        return first, first + self.stride_px

    def create(self, device: str = "cpu") -> nn.Module:
        torch.manual_seed(0)
        with torch.device(device):
            return timm.create_model(self.name, num_classes=CLASSES, **self.kwargs)


FAMILIES = [
    Family("ResNet", "resnet10t", "resnet"),
    Family("SE-ResNet", "seresnet18", "resnet"),
    Family("ECA-ResNet", "ecaresnet26t", "resnet"),
    Family("ResNeXt", "resnext50_32x4d", "resnet"),
    Family("SENet", "legacy_seresnet18", "senet"),
    Family("Res2Net", "res2net50_48w_2s", "res2net"),
    Family("ResNeSt", "resnest14d", "resnest"),
    Family("SKNet", "skresnet18", "sknet"),
    Family("ResNetV2", "resnetv2_18", "resnetv2"),
    Family("BiT", "resnetv2_50x1_bit", "resnetv2", batch_norm=False),
    Family("RegNetX", "regnetx_002", "regnet"),
    Family("RegNetY", "regnety_002", "regnet"),
    Family("DenseNet", "densenet121", "densenet", kwargs={"block_config": (2, 2, 2, 2)}),
    Family("EfficientNet", "efficientnet_b0", "efficientnet"),
    Family("EfficientNetV2", "tf_efficientnetv2_b0", "efficientnet"),
    Family("MixNet", "mixnet_s", "efficientnet"),
    Family("TinyNet", "tinynet_e", "efficientnet"),
    Family("MobileNetV1", "mobilenetv1_100", "efficientnet"),
    Family("MobileNetV2", "mobilenetv2_035", "efficientnet"),
    Family("MNASNet", "mnasnet_small", "efficientnet"),
    Family("SPNASNet", "spnasnet_100", "efficientnet"),
    Family("FBNet", "fbnetc_100", "efficientnet"),
    Family("MobileNetV3", "mobilenetv3_small_050", "mobilenetv3"),
    Family("MobileNetV4", "mobilenetv4_conv_small_035", "mobilenetv3"),
    Family("LCNet", "lcnet_035", "mobilenetv3"),
    Family("FBNetV3", "fbnetv3_b", "mobilenetv3"),
    Family("HardCoRe-NAS", "hardcorenas_a", "hardcorenas"),
    Family("MobileNetV5", "mobilenetv5_base", "mobilenetv5", batch_norm=False, kwargs={"channel_multiplier": 0.25}),
    Family("RepVGG", "repvgg_a0", "byobnet"),
    Family("MobileOne", "mobileone_s0", "byobnet"),
    Family("GENet", "gernet_s", "byobnet"),
    Family("GCResNeXt", "gcresnext26ts", "byobnet"),
    Family("RegNetZ", "regnetz_b16", "byobnet"),
    Family("LambdaResNet", "lambda_resnet26t", "byoanet"),
    Family("DLA", "dla46_c", "dla"),
    Family("HRNet", "hrnet_w18_small", "hrnet"),
    Family("VGG", "vgg11_bn", "vgg", kwargs={"mlp_ratio": 0.02}),
    Family("InceptionV3", "inception_v3", "inception_v3", least_px=96),
    Family("InceptionV4", "inception_v4", "inception_v4", least_px=96),
    Family("Inception-ResNetV2", "inception_resnet_v2", "inception_resnet_v2", least_px=96),
    Family("Xception", "legacy_xception", "xception"),
    Family("Aligned Xception", "xception41", "xception_aligned"),
    Family("NASNet", "nasnetalarge", "nasnet", kwargs={"num_features": 960, "stem_size": 24}),
    Family("PNASNet", "pnasnet5large", "pnasnet"),
    Family("CSPNet", "cspresnet50", "cspnet"),
    Family("DarkNet", "darknet17", "cspnet"),
    Family("CS3DarkNet", "cs3darknet_focus_s", "cspnet"),
    Family("CSPNeXt", "cspnext_tiny", "cspnext"),
    Family("GhostNet", "ghostnet_050", "ghostnet"),
    Family("GhostNetV2", "ghostnetv2_100", "ghostnet", least_px=64),
    Family("RepGhostNet", "repghostnet_050", "repghost"),
    Family("NFNet", "nfnet_l0", "nfnet", batch_norm=False),
    Family("NF-RegNet", "nf_regnet_b0", "nfnet", batch_norm=False),
    Family("ConvNeXt", "convnext_atto", "convnext", batch_norm=False),
    Family("ConvNeXtV2", "convnextv2_atto", "convnext", batch_norm=False),
    Family("InceptionNeXt", "inception_next_atto", "inception_next"),
    Family("EdgeNeXt", "edgenext_xx_small", "edgenext", batch_norm=False),
    Family("RDNet", "rdnet_tiny", "rdnet", batch_norm=False),
    Family("SelecSLS", "selecsls42", "selecsls", least_px=64, stride_px=64),
    Family("DPN", "dpn48b", "dpn"),
    Family("VoVNet", "ese_vovnet19b_slim_dw", "vovnet"),
    Family("HGNet", "hgnetv2_b0", "hgnet"),
    Family("TResNet", "tresnet_m", "tresnet"),
    Family("ReXNet", "rexnet_100", "rexnet"),
    Family("LCNetV2", "lcnetv2_small", "lcnetv2"),
    Family("RepViT", "repvit_m0_9", "repvit"),
    Family("StarNet", "starnet_s050", "starnet"),
    Family("FasterNet", "fasternet_t0", "fasternet"),
    Family("FastViT", "fastvit_t8", "fastvit"),
    Family("EfficientViT-MIT", "efficientvit_b0", "efficientvit_mit"),
    Family("EfficientViT-MSRA", "efficientvit_m0", "efficientvit_msra", least_px=64, stride_px=64),
    Family("EfficientViM", "efficientvim_m1", "efficientvim", least_px=64, stride_px=64),
    Family("SHViT", "shvit_s1", "shvit", least_px=64, stride_px=64),
    Family("iFormer", "iformer_t", "iformer"),
    Family("LowFormer", "lowformer_b0", "lowformer"),
    Family("CPUBone", "cpubone_nano", "cpubone"),
    Family("CSATv2", "csatv2", "csatv2", least_px=64, stride_px=64, batch_norm=False),
    Family("NextViT", "nextvit_small", "nextvit"),
    Family("MobileViT", "mobilevit_xxs", "mobilevit"),
    Family("TinyViT", "tiny_vit_5m_224", "tiny_vit"),
    Family("SwiftFormer", "swiftformer_xs", "swiftformer"),
    Family("ConvMixer", "convmixer_1024_20_ks9_p14", "convmixer", least_px=14, stride_px=14),
    Family("MambaOut", "mambaout_femto", "mambaout", batch_norm=False),
    Family("PoolFormer", "poolformer_s12", "metaformer", batch_norm=False),
    Family("FocalNet", "focalnet_tiny_srf", "focalnet", batch_norm=False),
    Family("DaViT", "davit_tiny", "davit", batch_norm=False),
    Family("PVTv2", "pvt_v2_b0", "pvt_v2", batch_norm=False),
    Family("Twins", "twins_svt_small", "twins", batch_norm=False),
    Family("XCiT", "xcit_nano_12_p16_224", "xcit", least_px=16, stride_px=16),
    Family("MViTv2", "mvitv2_tiny", "mvitv2", batch_norm=False),
    Family("Sequencer", "sequencer2d_s", "sequencer", 14, 14, batch_norm=False, kwargs={"layers": (1, 1, 1, 1)}),
    Family("HieraDet", "hieradet_small", "hieradet_sam2", batch_norm=False),
    Family("ViT", "vit_tiny_patch16_224", "vision_transformer", 16, 16, False, {**DYNAMIC, "depth": 2}),
    Family("EVA", "eva02_tiny_patch14_224", "eva", 14, 14, False, {**DYNAMIC, "depth": 2}),
    Family("DeiT", "deit_tiny_patch16_224", "deit", 16, 16, False, {**DYNAMIC, "depth": 2}),
    Family("ViTamin", "vitamin_small_224", "vitamin", 16, 16, False, DYNAMIC),
    Family("Hybrid ViT", "vit_tiny_r_s16_p8_224", "vision_transformer_hybrid", 32, 32, False, DYNAMIC),
    Family("SAM ViT", "samvit_base_patch16", "vision_transformer_sam", 16, 16, False, {"depth": 2}),
    Family("Swin", "swin_tiny_patch4_window7_224", "swin_transformer", 32, 32, False, SHALLOW),
    Family("SwinV2", "swinv2_tiny_window8_256", "swin_transformer_v2", 32, 32, False, SHALLOW),
    Family("SwinV2-CR", "swinv2_cr_tiny_224", "swin_transformer_v2_cr", 32, 32, False, SHALLOW),
]
# Files of networks that take one size only, or resize to it, as CrossViT does; test_network.py has members of them.
ONE_SIZE = {
    *("beit", "cait", "coat", "convit", "crossvit", "efficientformer", "efficientformer_v2", "gcvit", "hiera", "levit"),
    *("maxxvit", "mlp_mixer", "nest", "pit", "tnt", "visformer", "vision_transformer_relpos", "volo"),
}
# Vision transformers for any size of which timm has no member below 85 million parameters.
TOO_LARGE = {"deepseek_vit", "gemma4_vit", "naflexvit", "qwen3_vit"}

# With residuals, dense connections, squeeze and excitation, without batch norm, with a least size, and attention.
ALWAYS = {"ResNet", "DenseNet", "EfficientNet", "MobileNetV3", "RepVGG", "ConvNeXt", "GhostNetV2", "ViT"}
each = pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=() if family.family in ALWAYS else pytest.mark.soak)
        for family in FAMILIES
    ],
)


@each
def test_a_family_trains_at_two_sizes(family):
    network = family.create()
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    assert bool(layers) == family.batch_norm
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 3, size, size, generator=generator) for size in family.sizes]
    labels = torch.tensor([0, 3])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    first, *_, last = [p for p in network.parameters() if p.requires_grad]
    before = first.detach().clone(), last.detach().clone()
    network.train()
    for images in batches:
        outputs = network(images)
        assert outputs.shape == (2, CLASSES)
        loss = nn.functional.cross_entropy(outputs, labels)
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not torch.equal(first, before[0])
    assert not torch.equal(last, before[1])
    assert all(torch.isfinite(p).all() for p in network.parameters())
    if layers:
        # Of two values, as in a batch of two at one position, the mean after normalisation is 0 whatever they are.
        _check_calibration(network, torch.randn(3, 3, family.sizes[1], family.sizes[1], generator=generator))


def _check_calibration(network: nn.Module, images: torch.Tensor) -> None:
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}
    trained = {name: layer.running_mean.clone() for name, layer in layers.items()}
    result = calibrate_batch_norm(network, [images], max_batches=2)
    assert result.samples == 3
    for name, layer in layers.items():
        assert torch.isfinite(layer.running_mean).all(), name
        reached = result.statistics[name].count > 0
        assert torch.equal(layer.running_mean, trained[name]) != reached, name


@each
def test_a_family_has_its_stride_and_its_least_size(family):
    network = family.create("meta")
    assert network_stride(network) == family.stride_px
    check_sizes(network, family.name, [family.least_px])
    if family.least_px > family.stride_px:
        below = family.least_px - family.stride_px
        with pytest.raises(ValueError, match=f"{family.name} cannot take {below} px: its forward pass ends in"):
            check_sizes(network, family.name, [below, family.least_px])


def test_every_family_has_one_member_of_its_file():
    assert len({family.family for family in FAMILIES}) == len(FAMILIES)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for module in {family.module for family in FAMILIES}:
        members = {family.name for family in FAMILIES if family.module == module}
        assert members <= set(timm.list_models(module=module)), module


@pytest.mark.skipif(not timm.__version__.startswith("1.0.31"), reason="the tables were drawn up for timm 1.0.31")
def test_no_file_of_timm_is_left_out():
    covered = {family.module for family in FAMILIES} | ONE_SIZE | TOO_LARGE
    assert set(timm.list_modules()) - {"amoebanet", "networks"} == covered

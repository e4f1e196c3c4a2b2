"""Segmentation networks: plain `torch.nn.Module`s with JSON-plain constructor arguments."""

from voxelgate.networks import presets
from voxelgate.networks.attention_unet import AttentionGate, AttentionUNet, GatedLogits
from voxelgate.networks.describe import NetworkDescription, describe
from voxelgate.networks.flat import FlatNetwork
from voxelgate.networks.guided_attention import GuidedAttentionNet, GuidedOutput
from voxelgate.networks.nnunet_unets import PlainConvUNet, ResidualEncoderUNet
from voxelgate.networks.nonlocal_unet import NonLocalUNet
from voxelgate.networks.scripted import ScriptedNetwork

__all__ = [
    "AttentionGate",
    "AttentionUNet",
    "FlatNetwork",
    "GatedLogits",
    "GuidedAttentionNet",
    "GuidedOutput",
    "NetworkDescription",
    "NonLocalUNet",
    "PlainConvUNet",
    "ResidualEncoderUNet",
    "ScriptedNetwork",
    "describe",
    "presets",
]

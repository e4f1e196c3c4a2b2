"""Segmentation networks: plain `torch.nn.Module`s with JSON-plain constructor arguments."""

from pipeline.networks.attention_unet import AttentionGate, AttentionUNet, GatedLogits
from pipeline.networks.describe import NetworkDescription, describe
from pipeline.networks.flat import FlatNetwork
from pipeline.networks.guided_attention import GuidedAttentionNet, GuidedOutput
from pipeline.networks.nonlocal_unet import NonLocalUNet

__all__ = [
    "AttentionGate",
    "AttentionUNet",
    "FlatNetwork",
    "GatedLogits",
    "GuidedAttentionNet",
    "GuidedOutput",
    "NetworkDescription",
    "NonLocalUNet",
    "describe",
]

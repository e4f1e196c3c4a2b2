"""Segmentation networks: plain `torch.nn.Module`s with JSON-plain constructor arguments."""

from pipeline.networks.attention_unet import AttentionGate, AttentionUNet
from pipeline.networks.describe import NetworkDescription, describe

__all__ = ["AttentionGate", "AttentionUNet", "NetworkDescription", "describe"]

"""Encoders: images (B, C, H, W) -> features (B, D). They stand below the methods."""

from .image import Encoder, build_encoder

__all__ = ["Encoder", "build_encoder"]

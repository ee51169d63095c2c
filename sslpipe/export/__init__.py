"""Encoders leave the house: as folders that timm, Hugging Face, torchvision and ONNX load."""

from .folder import Exported, ExportSettings, export_checkpoint

__all__ = ["ExportSettings", "Exported", "export_checkpoint"]

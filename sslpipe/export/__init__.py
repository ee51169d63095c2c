"""Encoders leave the house: as folders that timm, Hugging Face, torchvision and ONNX load.

Those of text are for Hugging Face alone: text_folder.py.
"""

from .folder import Exported, export_checkpoint
from .model_card import ExportSettings

__all__ = ["ExportSettings", "Exported", "export_checkpoint"]

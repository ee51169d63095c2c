"""Encoders leave the house: as folders that timm, Hugging Face, torchvision and ONNX load.

Those of text are for Hugging Face alone: text_folder.py.
"""

from .folder import Exported, ExportSettings, export_checkpoint

__all__ = ["ExportSettings", "Exported", "export_checkpoint"]

"""Modalities: a folder for each, with the same parts."""

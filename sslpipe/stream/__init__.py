"""Data in motion: the order (pure), and the reader (threads)."""

"""Executors: canvases + parameter table -> views. Stateless; all agree with `kornia`."""

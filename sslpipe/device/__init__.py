"""From host memory to the device: buffers, the arena of a batch, hand-off. It knows no modality."""

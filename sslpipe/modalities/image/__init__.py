"""The image modality: decode, ops, draws, executors, masks, targets; `views` puts them together."""

"""Making shard sets: packing files, adopting the tars of others, exports for other readers."""

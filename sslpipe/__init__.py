"""sslpipe: the data engine for self-supervised pretraining."""

"""`python -m sslpipe`, which torchrun starts."""

from .cli import main

main()

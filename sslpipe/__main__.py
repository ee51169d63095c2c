"""`python -m sslpipe`, which torchrun starts."""

from .cli.commands import main

main()

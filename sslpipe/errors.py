"""Every exception; a message reads `where: what is wrong, with the value; what to do`.

SslpipeError
├── RecipeError      a recipe that cannot run (unknown key, wrong type ...); says file:line
├── ContractError    a method that the recipe's batches cannot feed
├── ShardError       shards, index or manifest that are missing, empty, cut, changed or unsafe
├── SampleError      one sample whose bytes are damaged or do not decode; names shard and key
├── StateError       a stream state or checkpoint that belongs to another run
└── ExtraError       a part of the package whose optional dependencies are not installed
"""


class SslpipeError(Exception):
    """The base of all errors that a user can cause and mend."""


class RecipeError(SslpipeError):
    """A recipe cannot run: an unknown key, a wrong type, sections that do not go together."""


class ContractError(SslpipeError):
    """A method asks for something that the recipe's batches do not hold."""


class ShardError(SslpipeError):
    """Shards, index or manifest are missing, empty, cut, changed or unsafe."""


class SampleError(SslpipeError):
    """One sample is damaged or does not decode."""


class StateError(SslpipeError):
    """A state or checkpoint is damaged, or belongs to another run."""


class ExtraError(SslpipeError):
    """A part of the package needs an optional dependency that is not installed."""

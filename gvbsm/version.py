"""The version: it is written here alone."""

__version__ = "0.2.0"

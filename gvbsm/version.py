"""The version, where everyone can import it from."""

__version__ = "0.1.0"

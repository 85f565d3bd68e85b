"""Data-set condensation by plugins."""

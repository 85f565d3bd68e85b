"""Condensed sets on disk."""

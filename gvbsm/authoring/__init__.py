"""Helps authors of plugins: pages about components, new packages."""

"""Measurements of gvbsm, and the plain implementations that it is measured against."""

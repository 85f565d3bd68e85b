"""The synthesis loop."""

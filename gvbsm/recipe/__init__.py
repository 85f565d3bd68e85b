"""The recipe: everything that determines a run."""

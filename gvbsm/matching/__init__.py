"""Statistics of activations, and how synthetic images are made to have the real ones."""

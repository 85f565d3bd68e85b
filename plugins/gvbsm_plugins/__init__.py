"""First-party plugins; each module or folder here is one, found like anyone else's by its entry point."""

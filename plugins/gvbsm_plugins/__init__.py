"""First-party plugins: each module or folder here but `pictures`, a library, is one with an entry point."""

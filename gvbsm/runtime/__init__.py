"""Units of work, and what they run on."""

"""One recipe at many settings."""

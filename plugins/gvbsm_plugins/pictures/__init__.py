"""Pictures on disk: listed, decoded, cached and opened as splits. A library for data sets, not a plugin."""

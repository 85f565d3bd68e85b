"""The five stages. Each module plans units of work from a workspace and does one unit's work."""

"""Settings: typed, with defaults, ranges and descriptions, in one place."""

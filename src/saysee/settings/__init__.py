"""Every setting, once: typed, described, with its default."""

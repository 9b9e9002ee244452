"""Whole experiments as files. ``saysee train NAME`` takes one of them by its name, with no folder and no ending."""

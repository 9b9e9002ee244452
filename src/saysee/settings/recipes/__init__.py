"""Packaged recipes: ``saysee train NAME`` accepts the name of a file here, without its suffix."""

"""The one way from a file or a text to a vector."""

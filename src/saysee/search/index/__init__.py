"""The index: its rows, its vectors and their upkeep."""

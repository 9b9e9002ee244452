"""Decoding of audio and images, the list of formats, and walking folders."""

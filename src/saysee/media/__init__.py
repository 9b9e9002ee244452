"""Decoding of sounds and pictures, and every refusal of a bad file."""

"""How the encoders that come with the package were made: hubert-nano and clip-nano, from nothing but this package."""

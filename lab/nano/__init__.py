"""How the encoders in the package, hubert-nano and clip-nano, are pre-trained, from nothing but this repository."""

"""HuBERT and CLIP, and the files of their checkpoints in the Hugging Face layout."""

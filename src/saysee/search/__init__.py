"""An index of pictures and clips, and the search in it: file to vector to rows, never what trained the model."""

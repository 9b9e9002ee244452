"""What imported vectors are read from: files, or a database."""

"""What the project says of its speed, measured. Not part of the package."""

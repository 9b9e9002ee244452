"""The version of the package: read by the build, by saved models and by each run's record."""

__version__ = "0.1.0"

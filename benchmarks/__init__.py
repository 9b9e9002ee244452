"""Programs that measure the speed that the documentation reports. Not part of the package."""

"""Training tasks: features in, named losses out. A task that is turned off is not built and costs nothing."""

"""What training asks of a model: features in, named losses out. A task that is off is not built and costs nothing."""

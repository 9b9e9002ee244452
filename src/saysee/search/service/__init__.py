"""The service: an index behind HTTP, for the page and for programs."""

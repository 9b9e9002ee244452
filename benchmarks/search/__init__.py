"""Speed of an index: encoding, searching, and spoken queries over HTTP, each against a plain implementation."""

"""How fast an index encodes, is searched and answers, against the plain way; ``saysee benchmark search``."""

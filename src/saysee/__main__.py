"""``python -m saysee`` is ``saysee``."""

import sys

from saysee.cli import main

sys.exit(main())

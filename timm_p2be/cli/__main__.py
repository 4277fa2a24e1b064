"""`python -m timm_p2be.cli` is the `timm-p2be` command."""

import sys

from timm_p2be.cli import main

if __name__ == '__main__':
    sys.exit(main())

"""`python -m timm_p2be.training` and `torchrun -m timm_p2be.training`: train.py of the installed package."""

import sys

from timm_p2be.training.run import main

if __name__ == '__main__':
    sys.exit(main())

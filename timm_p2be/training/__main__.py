"""`python -m timm_p2be.training` and `torchrun -m timm_p2be.training` are `timm-p2be train`."""

import sys

from timm_p2be.training.run import main

if __name__ == '__main__':
    sys.exit(main(prog='python -m timm_p2be.training'))

#!/usr/bin/env python3
"""Train any timm model, encoded or not, by the objective of the P2BE paper; --help has the flags."""

import sys

from timm_p2be.training.run import main

if __name__ == '__main__':
    sys.exit(main())

#!/usr/bin/env python3
"""Train one network on several data sets under several tables of codes (Table VII); --help has the flags."""

import sys

from timm_p2be.reproduce.transfer import main

if __name__ == '__main__':
    sys.exit(main())

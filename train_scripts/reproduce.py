#!/usr/bin/env python3
"""Reproduce a table or figure of the paper; the same as `timm-p2be reproduce`."""

import sys

from timm_p2be.cli import main

if __name__ == '__main__':
    sys.exit(main(['reproduce', *sys.argv[1:]]))

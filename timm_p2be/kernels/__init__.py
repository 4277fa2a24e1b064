"""Backends of `timm_p2be.lookup`: plain torch everywhere, compiled loops on the CPU."""

import os

LOADED_IN = os.getpid()  # a process with another number was forked off, without the threads of this one

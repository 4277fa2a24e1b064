"""Backends of `timm_p2be.lookup`, one file each: plain torch everywhere, compiled loops on the CPU."""

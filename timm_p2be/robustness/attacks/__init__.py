"""Attacks on images of pixel levels, each one file; `attack.py` says what they have in common."""

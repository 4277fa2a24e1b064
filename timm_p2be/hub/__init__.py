"""The Hub: publishing what a run of train.py trained, pulling and browsing what others published."""

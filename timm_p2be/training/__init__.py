"""The engine behind train.py: flags, loaders, epochs, checkpoints, exact resume."""

"""Tables and figures of the paper as grids of training runs: made, measured, and held against its claims."""

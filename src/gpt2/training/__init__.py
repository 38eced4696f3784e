"""The loop that learns, and what it leaves behind: checkpoints, metrics, plots."""

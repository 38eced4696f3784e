"""From tokens on disk to batches: windows, and the order in which training meets them."""

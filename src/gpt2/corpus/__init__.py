"""From files to tokens on disk: sources are found and read as documents, checked, split, and laid down in shards."""

"""BraTS archives to shards: discovery, identity, split, partition, preprocessing. No torch."""

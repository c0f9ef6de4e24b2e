"""The on-disk contract between preparation and training: vocabulary, manifest, shards, verification."""

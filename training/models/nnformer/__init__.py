"""nnFormer, a 3D transformer whose attention works within volumes of its feature maps."""

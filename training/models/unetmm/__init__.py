"""UNetMM, the paper's 2D U-Net whose skip connections fuse the four modalities by attention."""

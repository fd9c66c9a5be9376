"""The layers of the decoder: attention, FFN, fused projections, the latent cache and the loss."""

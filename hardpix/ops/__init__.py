"""Pure tensor functions: the papers' equations. Knows nothing of models, data or training."""

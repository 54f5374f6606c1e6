"""Learn from the data: retrieval, index, ranking and serving models."""

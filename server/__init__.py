"""Coordinator side: round loop, transports, Flower ServerApp. Never imports torch, images or training."""

"""Federated learning: the round loop, the clients and the strategies."""

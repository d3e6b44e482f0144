"""The federated model protocol and its implementations."""

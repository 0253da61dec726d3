"""Brokers to try the agent on, on this machine alone: for the demo, the tests and the bench."""

"""Brokers on this machine alone, to try the agent on: a mosquitto, and in front of it a stand-in for AWS IoT Core."""

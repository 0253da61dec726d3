"""MQTT 5 by awscrt: one connection class for every broker."""

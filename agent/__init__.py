"""ArXplorer's edge agent: arXiv search over MQTT, offline first."""

__version__ = "0.1.0"

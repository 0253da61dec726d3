"""The Python API for applications: ask an agent, or run one, in a few lines."""

from agent.aws.client import AWSIoTMQTTClient
from agent.bridge import MQTTSearchBridge
from agent.service import MQTTSearchService

__all__ = ["AWSIoTMQTTClient", "MQTTSearchBridge", "MQTTSearchService"]

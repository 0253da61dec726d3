"""Sizes that both links keep to."""

from typing import Final

MAX_MESSAGE_BYTES: Final = 128 * 1024
"""What AWS IoT Core carries; the local link keeps to it, so that an answer never depends on the link."""

"""Search: one question in, the best papers out, by meaning, by keyword, or both."""

from agent.search.api import SearchAPI

__all__ = ["SearchAPI"]

"""Engines that a user might pick instead, each behind the same few calls and measured in a process of its own."""

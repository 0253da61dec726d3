"""Bytes and documents to domain objects and back: no I/O, no clock."""

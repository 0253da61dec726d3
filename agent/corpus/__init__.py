"""Getting papers in: records, import, embedding."""

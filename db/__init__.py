"""The bridge's own rows in PostgreSQL."""

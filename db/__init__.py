"""Tables, queries, guarded status transitions and migrations in PostgreSQL."""

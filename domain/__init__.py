"""Rules and data types: names, statuses and events. Imports only the standard library and pydantic."""

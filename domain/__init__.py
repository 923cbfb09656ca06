"""The words of the bridge: names, statuses and events; standard library and pydantic only."""

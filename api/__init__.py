"""The HTTP API: an ASGI application of endpoints, behind middleware with one job each."""

"""Outgoing events: read from the outbox, converted to CloudEvents, and sent to a sink."""

"""Outgoing events: built, published from the outbox, sent to a sink."""

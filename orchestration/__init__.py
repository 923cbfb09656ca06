"""Temporal plumbing: client, codec, sandbox, schedules, search attributes, interceptors."""

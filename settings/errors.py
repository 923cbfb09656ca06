"""The error of wrong settings, which every reader of settings may raise."""


class InvalidSettingsError(ValueError):
    """Settings are missing or wrong; the message has one line for each."""

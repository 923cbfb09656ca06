"""The error of wrong settings, which every reader of settings may raise."""

from domain.operator_error import OperatorError


class InvalidSettingsError(OperatorError):
    """Settings are missing, wrong or unknown; the message has one line for each."""

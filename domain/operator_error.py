"""The base of the errors that an operator can fix."""


class OperatorError(Exception):
    """Something that an operator can fix; the message says what is wrong, where, and what to do.

    The command line prints the message instead of a traceback.
    """

"""The one exception that means "the user's input is wrong": scripts answer it with one line and exit code 2."""


class InputError(ValueError):
    """Wrong input: says what was expected, what was found and what to do, naming the flag and the valid values."""

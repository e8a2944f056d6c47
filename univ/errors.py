"""The one exception that means "the user's input is wrong": scripts answer it with one line and exit code 2."""

import unicodedata


class InputError(ValueError):
    """Wrong input: says what was expected, what was found and what to do, naming the flag and the valid values."""


def plain(value: object, *, keep: str = "") -> str:
    """Text that only shows: what steers a terminal or the order of letters, or is no character, becomes its escape.

    Names of models, files and fields come from files and from the net; a name that holds ESC would act on the terminal.

    Args:
        keep: characters that are left as they are, such as line ends.
    """
    steering = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, surrogate, and the separators of lines and paragraphs
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in steering and letter not in keep else letter
        for letter in str(value)
    )

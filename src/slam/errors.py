"""Whatever a user can put right → one line that says what, where and what to do; exit status 2."""


class SlamError(Exception):
    """The root of every error that a user can put right; `str(error)` is the one line shown."""


class ConfigError(SlamError):
    """A setting or a recipe says something that cannot be meant."""


class InputError(SlamError):
    """A file or folder is missing, empty, unreadable or malformed."""


class MismatchError(SlamError):
    """Two things that must come from one another do not (tokenizer, vocabulary, finished run)."""


class MissingExtraError(SlamError):
    """A part needs a package that is not installed; the line names the extra to install."""


def reason_of(error: BaseException) -> str:
    """The first line of what a library says, in at most 300 characters; its kind where it says nothing."""
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:300]

"""What a user can get wrong, and how it is said: what happened, with which value, and what to do about it."""


class UserError(Exception):
    """A mistake that the user can mend. The command line prints it without a traceback and exits with 2.

    Args:
        what: what happened, naming the offending value (a path, a column, a number).
        fix: what to do about it, in one sentence.
    """

    exit_code = 2

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what}\n{fix}" if fix else what)
        self.what = what
        self.fix = fix


class ConfigError(UserError):
    """A setting that is unknown, out of range, or contradicts another one."""


class DataError(UserError):
    """A file, table or corpus that cannot be trained on as it is."""


class RunError(UserError):
    """A run folder that is missing, taken, locked, or does not fit the command."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit the model."""

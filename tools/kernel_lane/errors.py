"""The one error of the kernel lane. Belongs here: nothing else."""


class LaneError(Exception):
    """The lane cannot run, or did not run to its end; the text says what happened and what repairs it."""

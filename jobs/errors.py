"""What can go wrong with a job once its request was accepted."""


class JobFailed(RuntimeError):
    """The job ran and failed; the text says at what, why, and what to do."""


class JobUnplaced(JobFailed):
    """There was no room for the job's workers; another attempt may find some."""


class JobStopped(RuntimeError):
    """The job was asked to stop and did; it can be resumed."""

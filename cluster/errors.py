"""What can be wrong with the places a job talks to. Imports nothing heavy."""


class ClusterError(RuntimeError):
    """A service cannot be reached or cannot be used; the text says what to do."""


class TrackingError(ClusterError):
    """The MLflow server cannot be reached, started, or used."""

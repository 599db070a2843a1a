"""The embedded MLflow server: start it in the background, find it again, stop it.

Nobody but the server opens its database.
"""

from cluster import services
from cluster.errors import TrackingError
from cluster.home import Home, Surroundings
from cluster.services import Server, Service

IDLE_S = 30 * 60.0


def service_of(home: Home, *, idle_s: float = IDLE_S) -> Service:
    """The MLflow server of a state folder; it leaves when nobody has asked it for a while."""
    environment = home.child_environment()
    # Nothing may point MLflow or its helpers elsewhere.
    for name in [name for name in environment if name.startswith(("MLFLOW_", "_MLFLOW_"))]:
        del environment[name]
    return Service(
        name="MLflow server",
        module="cluster.tracking_main",
        folder=home.mlflow,
        health_path="/health",
        arguments=[str(idle_s)],
        environment=environment | {"OMP_NUM_THREADS": "1"},
        error=TrackingError,
    )


def find_server(home: Home) -> Server | None:
    """The server of this state folder, if its process lives."""
    return service_of(home).find()


def tracking_uri(surroundings: Surroundings) -> str | None:
    """Where the record goes now; None: nowhere yet. Starts nothing."""
    if surroundings.tracking_uri:
        return surroundings.tracking_uri
    server = find_server(surroundings.home)
    return server.uri if server else None


def ensure_server(home: Home, *, idle_s: float = IDLE_S) -> Server:
    """Find the server or start it; does not wait until it answers."""
    return service_of(home, idle_s=idle_s).ensure()


def ensure_tracking(surroundings: Surroundings) -> str:
    """The address of the server that serves here; the embedded one is started if it must be."""
    return surroundings.tracking_uri or ensure_server(surroundings.home).uri


def wait_ready(home: Home, server: Server, *, timeout_s: float = 120.0) -> None:
    """Return as soon as the server answers.

    Raises:
        TrackingError: its process ended, or it did not answer in time.
    """
    service_of(home).wait_ready(server, timeout_s=timeout_s)


def answers(uri: str, *, timeout_s: float = 3.0) -> bool:
    """Whether an MLflow server answers at `uri`."""
    return services.answers(f"{uri}/health", timeout_s=timeout_s)


def stop_server(home: Home) -> bool:
    """End the server; True if there was one. Nothing of it is left running."""
    return service_of(home).stop()

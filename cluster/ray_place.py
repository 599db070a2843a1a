"""Where jobs of the queue run: the head of this state folder, or a cluster that was named."""

import sys
from dataclasses import dataclass, field

from cluster.errors import ClusterError
from cluster.home import Surroundings
from cluster.ray_head import STOP_WAIT_S, head_service, token_of


@dataclass(frozen=True)
class RayAddress:
    """How a cluster's dashboard is reached."""

    uri: str
    token: str | None = field(repr=False)


def find_ray(surroundings: Surroundings) -> RayAddress | None:
    """The cluster for jobs of the queue; None: there is none now.

    Raises:
        ClusterError: RAY_ADDRESS is not the address of a dashboard.
    """
    if surroundings.ray_address is not None:
        if not surroundings.ray_address.startswith(("http://", "https://")):
            raise ClusterError(
                f"RAY_ADDRESS = {surroundings.ray_address}: the queue reaches a cluster through "
                "its dashboard; write http://HOST:8265"
            )
        return RayAddress(surroundings.ray_address, surroundings.ray_token)
    server = head_service(surroundings.home).find()
    return RayAddress(server.uri, token_of(surroundings.home)) if server else None


def launch_command(surroundings: Surroundings) -> tuple[str, dict[str, str] | None]:
    """The Python of the cluster, and what its processes must find in their environment.

    The head of this state folder was started with all of it; a runtime environment would cost
    seconds. No secret is among it: Ray shows runtime environments to everybody who may ask.
    """
    if surroundings.ray_address is None:
        return sys.executable, None
    environment = {"GPT2CLS_HOME": str(surroundings.home.root)}
    return "python", environment | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}

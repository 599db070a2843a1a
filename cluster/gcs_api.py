"""What only the control service of a cluster tells, over gRPC with our own time limits.

Ray's client of it ends the process that uses it when the service stays away for a minute. Source
of the interface: Ray 2.60, `gcs_service.proto`.
"""

import grpc

from cluster.ray_api import RayUnreachableError

_TIMEOUT_S = 1.0


class GcsApi:
    """The control service of one cluster. Every call answers or raises within seconds."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        # A proxy of the environment must not see the token.
        self._channel = grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])

    def close(self) -> None:
        self._channel.close()

    def draining_nodes(self) -> frozenset[str]:
        """The ids of the nodes that are about to go, such as spot machines after their notice.

        Raises:
            RayUnreachableError: it did not answer.
        """
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc  # imports Ray

        stub = gcs_service_pb2_grpc.NodeResourceInfoGcsServiceStub(self._channel)
        try:
            reply = stub.GetDrainingNodes(
                gcs_service_pb2.GetDrainingNodesRequest(),
                timeout=_TIMEOUT_S,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            raise RayUnreachableError(
                f"Ray's control service at {self.address} does not answer ({error.code().name})"
            ) from error
        return frozenset(node.node_id.hex() for node in reply.draining_nodes)

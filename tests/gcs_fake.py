"""A control service of Ray's that knows of nothing but nodes that are about to go."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc


class GcsFake(gcs_service_pb2_grpc.NodeResourceInfoGcsServiceServicer):
    """A real gRPC server, while used as a context."""

    def __init__(self, *, token=None, delay_s=0.0):
        self.token, self.delay_s = token, delay_s
        self.draining = []
        """Ids of nodes, in hexadecimal digits."""
        self._server = grpc.server(ThreadPoolExecutor(2))
        gcs_service_pb2_grpc.add_NodeResourceInfoGcsServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def GetDrainingNodes(self, request, context):  # noqa: N802, Ray's name
        said = dict(context.invocation_metadata()).get("authorization")
        if self.token and said != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")
        time.sleep(self.delay_s)
        reply = gcs_service_pb2.GetDrainingNodesReply()
        for node in self.draining:
            reply.draining_nodes.add(node_id=bytes.fromhex(node))
        return reply

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(0)

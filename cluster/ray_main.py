"""The head of a private Ray: one process that lives as long as the command that started it.

Run as `python -m cluster.ray_main FOLDER NUM_CPUS NUM_GPUS`, with a pipe as standard input. It
leaves out what nobody asks in a session of one command: the dashboard (for which Ray would wait),
the autoscaler, and the copying of the workers' output to the driver.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams

from cluster.local import ADDRESS_FILE, LOOPBACK

_OBJECT_STORE_BYTES = 128 << 20  # nothing of ours goes through the object store


class _Head(Node):  # type: ignore[misc]
    def start_api_server(self, **options: Any) -> None:
        self._webui_url = ""


def main(folder: Path, num_cpus: int, num_gpus: int) -> None:
    """Start the processes of a head node, say where they are, and end with the standard input."""
    params = RayParams(
        node_ip_address=LOOPBACK,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        temp_dir=str(folder),
        include_log_monitor=False,
        no_monitor=True,
    )
    # With the reaper the kernel ends what this process started when it ends, however that comes.
    head = _Head(params, head=True, shutdown_at_exit=False, spawn_reaper=True)
    aside = folder / f"{ADDRESS_FILE}.new"
    aside.write_text(json.dumps(head.gcs_address))
    aside.rename(folder / ADDRESS_FILE)
    sys.stdin.read()
    head.kill_all_processes(check_alive=False, allow_graceful=False)
    shutil.rmtree(folder, ignore_errors=True)  # its owner may be gone


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

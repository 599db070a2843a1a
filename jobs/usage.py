"""What a job takes from the machine: its own processes, and the machine's memory."""

import psutil


class Usage:
    """Holds what is needed to tell shares of time apart between two samples."""

    def __init__(self) -> None:
        self._self = psutil.Process()
        psutil.cpu_percent()  # the first answer is always 0

    def sample(self) -> dict[str, float]:
        """CPU of the machine in percent; memory of this process and all below it in MiB."""
        memory_bytes = 0
        for process in [self._self, *self._self.children(recursive=True)]:
            try:
                memory_bytes += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        machine = psutil.virtual_memory()
        return {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/job_memory_mib": memory_bytes / 2**20,
            "system/machine_memory_percent": machine.percent,
        }

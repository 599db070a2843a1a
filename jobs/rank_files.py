"""Files of a job's folder through which its ranks and its driver tell each other things."""

ATTEMPTS_FILE = "attempts.jsonl"
"""A line for each time that Ray Train had to replace workers."""
FAILURE_FILE = "failure.txt"
"""Why training cannot go on, told by rank 0."""
RANK_NODES = "rank_nodes"
"""A folder with a file for each rank: the id of the Ray node that it was last started on."""

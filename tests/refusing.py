"""What the tests of refused job files share."""

import json
import os
from pathlib import Path

from jobs.cli import main


def refused(capfd, text, *options, verb="run"):
    """Refuse a job file twice, for a person and for a program; its error document."""
    Path("job.yaml").write_text(text, encoding="utf-8")
    assert main([verb, "job.yaml", *options]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert main([verb, "job.yaml", "--json", *options]) == 2
    printed = capfd.readouterr()
    assert printed.err == ""
    error = json.loads(printed.out)["error"]
    assert error["kind"] == "bad_request"
    assert said.err.strip() == error["message"]
    for word in ("Traceback", "invalid", "please", "pydantic", "Input should"):
        assert word.lower() not in said.err.lower()
    assert os.listdir() == ["job.yaml"]
    assert not Path(os.environ["GPT2CLS_HOME"]).exists()
    return error

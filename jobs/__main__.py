"""`python -m jobs` is `gpt2cls`."""

import sys

from jobs.cli import main

sys.exit(main())

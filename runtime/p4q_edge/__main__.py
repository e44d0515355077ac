"""`python -m p4q_edge` is `p4q-edge`; so `torchrun -m p4q_edge` starts it in several processes."""

import sys

from p4q_edge.runtime.cli.main import main

sys.exit(main())

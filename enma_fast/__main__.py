"""`python -m enma_fast`, the same as `enma-fast`; `torchrun -m enma_fast train RECIPE ...` starts several ranks."""

import sys

from .cli import main

sys.exit(main())

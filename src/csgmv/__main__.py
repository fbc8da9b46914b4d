"""`python -m csgmv` is `csgmv`."""

import sys

from csgmv.cli import main

sys.exit(main())

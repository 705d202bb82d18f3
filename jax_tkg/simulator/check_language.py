"""The command that checks kernels for constructs that AWS's compiler rejects.

``python -m jax_tkg.simulator.check_language module:kernel ...``
"""

import sys

from jax_tkg.simulator.source_check.check_language import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m gpu_check`, which `scripts/gpu_check.sh` calls once it has found Python and the packages."""

import sys

from gpu_check.run import main  # elsewhere than here: a process that is started afresh cannot import this file

if __name__ == "__main__":
    sys.exit(main())

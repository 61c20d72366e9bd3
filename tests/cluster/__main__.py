"""`python tests/cluster up`: a real Kubernetes on this machine, for the end-to-end tests."""

import sys

from testcluster.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

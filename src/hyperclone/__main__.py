"""`python -m hyperclone`, for launchers of many processes.

For example `torchrun --nproc-per-node 8 -m hyperclone train ...`.
"""

from hyperclone.cli.main import main

main()

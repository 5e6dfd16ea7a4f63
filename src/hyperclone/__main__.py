"""`python -m hyperclone`, which launchers of many processes need: `torchrun --nproc-per-node 8 -m hyperclone train
...`.
"""

from hyperclone.cli.main import main

main()

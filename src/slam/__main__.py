"""`python -m slam` → the same commands as `slam`; what `torchrun -m slam` starts."""

from slam.cli import main

if __name__ == "__main__":
    main()

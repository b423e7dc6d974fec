"""``python -m ddnkit``, which is also how torchrun starts it: ``torchrun ... -m ddnkit run ...``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="ddnkit")

"""`python -m bandit_pft` is the command `bandit-pft`."""

from bandit_pft.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

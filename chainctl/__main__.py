"""python -m chainctl"""

from chainctl.cli import main

if __name__ == "__main__":
    main()

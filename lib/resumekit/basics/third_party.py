"""Finding PyYAML and jsonschema in a Python that was started without its packages (`-S`).

Setting those up costs 2 ms, and few passes of the watcher read a config that needs them.
"""

import functools
import sys


@functools.cache
def find() -> None:
    """Let the interpreter's packages be found from here on."""
    if sys.flags.no_site:
        import site

        site.main()

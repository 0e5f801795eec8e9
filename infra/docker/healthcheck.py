"""Exits with 0 if the process in this container answers. The argument is another port and path: `:8002/health`."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request


def main(where: str) -> int:
    url = f"http://127.0.0.1{where}"
    try:
        # Docker passes its client's proxy settings to containers, but loopback is reached without a proxy.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=4) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        print(f"{url}: {error.code} {error.reason}")
        return 1
    except OSError as error:
        print(f"{url}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else f":{os.environ.get('PORT') or 8000}/health/live"))

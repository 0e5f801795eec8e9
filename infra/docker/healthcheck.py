"""Exit 0 when the process in this container answers. An argument names another path or port: `:8002/health`."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request


def main(where: str) -> int:
    url = f"http://127.0.0.1{where}"
    try:
        # Docker hands its client's proxies to containers; none stands between us and loopback.
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

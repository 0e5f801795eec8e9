"""An environment that names proxies for everything, none of which is there."""

_NOWHERE = "http://127.0.0.1:9"
BEHIND_A_PROXY = {
    **{
        name: _NOWHERE
        for scheme in ("http", "https", "all", "ws")
        for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    },
    "no_proxy": "",
    "NO_PROXY": "",
}

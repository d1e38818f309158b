"""Prefect flows: what is scheduled, and nothing else.

A flow that is called with no server shall not start one of its own (it takes half a minute, and one that is killed leaves
it behind), nor speak to anybody else. With a server set up (PREFECT_API_URL) these change nothing that matters to it.
"""

import os

QUIET = {
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
for name, value in QUIET.items():
    os.environ.setdefault(name, value)

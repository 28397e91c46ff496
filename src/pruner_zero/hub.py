"""Whether the Hugging Face hub can be reached, asked before its libraries retry for long."""

# Seconds to wait for the hub's answer; its libraries alone would retry for half a minute.
HUB_TIMEOUT = 3.0


def hub_reachable() -> bool:
    """Whether the hub answers; True in offline mode, where the cache is read instead."""
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:
        # Any error means the same here; its type depends on the transport library.
        return False
    return True

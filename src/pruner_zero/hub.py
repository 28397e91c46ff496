"""Whether the Hugging Face hub answers, so that no one waits for retries when it cannot."""

# Seconds the hub has to answer before it counts as away: its libraries alone would retry for
# half a minute.
HUB_TIMEOUT = 3.0


def hub_reachable() -> bool:
    """Whether the hub answers; True in offline mode, where the cache answers in its place."""
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:
        # Any failure means the same here, and the transport library behind it has changed.
        return False
    return True

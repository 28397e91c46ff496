"""Whether the Hugging Face hub can be reached, asked before its libraries retry for long."""


def hub_reachable() -> bool:
    """Whether the hub answers in $HF_HUB_ETAG_TIMEOUT seconds (10 by default).

    True in offline mode, where the cache is read instead.
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:
        # Any error means the same here; its type depends on the transport library.
        return False
    return True

"""``hardpix sweep``: a resumable study of many runs."""
